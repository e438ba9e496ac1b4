"""Proves every causal model_type of the installed transformers on a small copy, and writes docs/families.md.

    python scripts/family_docs.py [--keep out/proofs.jsonl] [model_type ...]

The configuration of each is its default one. Proofs go to the file as they are made, and are not made again; half a
minute each on one core.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

os.environ.setdefault("OMP_NUM_THREADS", "1")
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
_LONGEST = 300
_ABILITIES = ("streamed", "whole", "generated", "exported", "planned")
_HEAD = """# Families of models

What transformers {version} calls a causal language model, and what was proven of each `model_type`: a small copy of its
default configuration (every kind of its layers, narrow, the same flags), compared in fp64 with the model's own forward
and ordinary backpropagation: all weights and an adapter, one document and several, two tile sizes, whole windows, text
with a cache, exported weights read back. `engine verify --model DIR` does the same with a model's own config.json;
`engine plan` and `engine train` do it by themselves where a model_type is not listed.

Made by `python scripts/family_docs.py`. Of {all} model types {admitted} are admitted to the streamed step.

A proof shares the engine's code, so it is no second opinion. Fourteen families are compared apart from it by plain
transformers in fp64 (`tests/verify/test_family_proof.py`), and the listed ones in `tests/models/test_families.py`.
Where eager attention's fp32 softmax shows (Granite's scores are large), the comparison is with SDPA, which is in fp64.
No family that is new here has run on a GPU yet.

"""


def main() -> int:
    """Makes what proofs are missing, and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, default=Path("out/proofs.jsonl"))
    parser.add_argument("model_types", nargs="*")
    args = parser.parse_args()
    args.keep.parent.mkdir(parents=True, exist_ok=True)
    rows = {row["model_type"]: row for row in _read(args.keep)}
    for model_type in args.model_types or _model_types():
        if model_type not in rows or args.model_types:
            rows[model_type] = _prove(model_type)
            with args.keep.open("ab") as file:
                file.write(msgspec.json.encode(rows[model_type]) + b"\n")
            print(model_type, _state(rows[model_type]), file=sys.stderr, flush=True)
    PAGE.write_text(_page([rows[name] for name in sorted(rows)]), encoding="utf-8")
    return 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from (msgspec.json.decode(line) for line in path.read_bytes().splitlines())


def _model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _prove(model_type: str) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    from engine.verify.family_proof import prove_family

    logging.set_verbosity_error()
    torch.set_num_threads(1)

    def late(*_: Any) -> None:
        raise TimeoutError(f"its proof takes more than {_LONGEST} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.for_model(model_type)
            _complete(config)
            proof = prove_family(config)
        refused, differences = proof.refused, proof.differences
    except Exception as problem:
        refused, differences = dict.fromkeys(_ABILITIES, str(problem).splitlines()[0][:200] or "it fails"), {}
    finally:
        signal.alarm(0)
    return {"model_type": model_type, "refused": refused, "differences": differences}


def _complete(config: Any) -> None:
    """Sets what the default configuration of some families leaves open, and their files do not."""
    if getattr(config, "num_key_value_heads", 1) is None:
        config.num_key_value_heads = config.num_attention_heads
    if getattr(config, "head_dim", 1) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads


def _state(row: dict[str, Any]) -> str:
    admitted = [ability for ability in _ABILITIES if not row["refused"].get(ability, "not proven")]
    return ", ".join(admitted) or "nothing"


def _page(rows: list[dict[str, Any]]) -> str:
    import transformers

    admitted = [row for row in rows if not row["refused"]["streamed"]]
    refused = [row for row in rows if row["refused"]["streamed"]]
    text = _HEAD.format(version=transformers.__version__, all=len(rows), admitted=len(admitted))
    text += "## Admitted to the streamed step\n\n"
    text += "| model_type | also | largest difference | not, and why |\n|---|---|---|---|\n"
    for row in admitted:
        others = [name for name in _ABILITIES[1:] if not row["refused"].get(name, "not proven")]
        worst = max(value for name, value in row["differences"].items() if name.startswith("streamed"))
        problems = [f"{name}: {row['refused'][name]}" for name in _ABILITIES[1:] if row["refused"].get(name)]
        text += f"| {row['model_type']} | {', '.join(others)} | {worst:.0e} | {_cell('; '.join(problems))} |\n"
    text += "\n## Refused\n\n| model_type | admitted to | why the streamed step is not |\n|---|---|---|\n"
    for row in refused:
        text += f"| {row['model_type']} | {_state(row)} | {_cell(row['refused']['streamed'])} |\n"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
