"""What comes in from outside, each with cases made of a seed: words, and files that somebody else wrote."""

from __future__ import annotations

from tests.chaos.fuzzing import Make
from tests.chaos.surfaces import command_lines, configurations, damaged_runs, data_sets, model_folders, run_directories

SURFACES: dict[str, tuple[int, int, Make]] = {
    "odd command lines": (5_000, 12, command_lines.make),
    "odd configuration files": (3_000, 4, configurations.make),
    "odd run directories": (2_000, 6, run_directories.make),
    "damaged completed runs": (1_500, 6, damaged_runs.make),
    "odd model folders": (1_200, 6, model_folders.make),
    "odd data sets": (1_200, 6, data_sets.make),
}
"""Name → full count, short count, how a case is made."""
