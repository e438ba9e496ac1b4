"""Tunes Python's garbage collector for a process that answers keys."""

from __future__ import annotations

import gc

THRESHOLDS = (20_000, 5, 5)
"""New containers until the young are examined, and how often that happens before the middle and the old are.

Python's own 700 examines the heap 50 to 200 times while a screen is mounted, and everything in it once: a third of the
time until the screen is drawn. A screen leaves some 20,000 containers in cycles, so that these figures keep a few tens
of MB of closed screens at most.
"""


def examine_less() -> None:
    """Examines the heap less often, and never again what start-up has imported; the latter once a process."""
    gc.set_threshold(*THRESHOLDS)
    if not gc.get_freeze_count():
        gc.freeze()
