"""A recipe whose import prints what the process has imported, and what its journal holds by then; or kills it."""

import json
import os
import signal
import sys
from pathlib import Path

from engine.protocol.events import RunFinished

(JOURNAL,) = Path(os.environ["OUTPUT"]).glob("runs/*/events.jsonl")
print(json.dumps({"modules": sorted(sys.modules), "journal": JOURNAL.read_text().splitlines()}))
if "KILLED" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)


def train(session):
    session.emit(RunFinished(status="completed", steps=0, seconds=0.0))
