"""The `engine` command with the short recipe in place of the training: `python -m tests.runs.short_engine`."""

from __future__ import annotations

import functools
import sys

from engine.cli import main
from engine.launch import launcher
from tests.runs import recipes

if __name__ == "__main__":
    launcher.launch = functools.partial(launcher.launch, recipe=recipes.PATH)  # type: ignore[assignment]
    sys.exit(main())
