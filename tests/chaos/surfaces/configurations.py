"""Configuration files: fields of other types, and YAML that is none."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import yaml

from engine.config import load_mapping
from tests.chaos.fuzzing import Bench
from tests.chaos.odd import ODD, mutate, odd


def make(bench: Bench, rng: random.Random, folder: Path) -> list[str]:
    """A file that `engine doctor` or `engine train` reads."""
    original = (bench.run / "config.yaml").read_bytes()
    path = folder / "config.yaml"
    if rng.random() < 0.3:
        path.write_bytes(mutate(original, rng))
    else:
        value = load_mapping(bench.run / "config.yaml")
        for _ in range(rng.randint(1, 3)):
            value = odd(value, rng)
        if isinstance(value, dict) and rng.random() < 0.1:
            value[rng.choice(["zz", "", "model", 5, None])] = copy.deepcopy(rng.choice(ODD))
        path.write_text(yaml.safe_dump(value, allow_unicode=rng.random() < 0.5), "utf-8", "surrogatepass")
    asked = rng.choice([["doctor", "--quick"], ["train", "--dry-run"], ["train", "--dry-run", "--json"]])
    # Named last, so that nothing is written where an odd value says.
    return [*asked, "--config", "config.yaml", "--output", str(folder / "written")]
