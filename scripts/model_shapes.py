"""Writes assets/model_shapes.json: the shapes of the catalogue's models whose families are not listed.

    python scripts/model_shapes.py [--check]

Each is read from the modules that transformers builds of the model's settings, without weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    import tomli as tomllib

from transformers import AutoConfig

from engine.assets import asset
from engine.verify.family_proof import has_experts
from engine.verify.observed_shape import observed_shape

TARGET = Path(__file__).parent.parent / "assets" / "model_shapes.json"


def shapes() -> str:
    entries = tomllib.loads(asset("models.toml").read_text(encoding="utf-8"))
    configs = {
        name: AutoConfig.for_model(entry["family"], **entry["config"])
        for name, entry in entries.items()
        if "config" in entry
    }
    found = {name: observed_shape(config, adapts_mlp=not has_experts(config)) for name, config in configs.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    text = shapes()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
    elif json.loads(text) != json.loads(TARGET.read_text(encoding="utf-8")):
        sys.exit(f"{TARGET} is not what the settings amount to: run {Path(__file__).name}")


if __name__ == "__main__":
    main()
