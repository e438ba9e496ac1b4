"""How often a file parses with a function that the embedded model wrote, on packages that it never saw.

    python scripts/embedded_functions.py out/corpus/held-out/click-8.5.1 [DIR ...] [--functions 20]

Functions, prompts and marks are those of `engine evaluate`; this asks one model instead of comparing two, which takes
half the time and needs no run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.config import DataSection
from engine.data.dataset import build_dataset
from engine.evaluation.functions import choose_functions
from engine.evaluation.held_out import HeldOut
from engine.evaluation.tasks import complete
from engine.models.catalogue import find_model
from engine.models.loading import load_model, load_tokenizer
from engine.models.placement import choose_placement
from engine.tokenization.encoder import Encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--functions", type=int, default=20, help="of each package, at most")
    parser.add_argument("--context", type=int, default=1024, help="tokens of prompt and body together")
    parser.add_argument("--tokens", type=int, default=160, help="of a body, at most")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    spec = find_model("demo")
    tokenizer = load_tokenizer(spec)
    encoder = Encoder(tokenizer)
    model = load_model(spec, choose_placement(options.device, "auto")).eval()
    for package in options.packages:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="elite-functions-") as folder:
            data = DataSection(repositories=[str(package)], fim=0.0)
            dataset = build_dataset(data, tokenizer=tokenizer, context=options.context, cache=Path(folder))
            held_out = HeldOut.whole(dataset, options.context, together=True)
            functions = choose_functions(held_out.texts(encoder), options.functions)
            written = complete(
                model,
                encoder,
                functions,
                "completion",
                context=options.context,
                max_tokens=options.tokens,
                progress=lambda *_: None,
            )
        marks = [one.marks for one in written]
        print(
            f"{package.name}: {sum(one.parses for one in marks)} of {len(marks)} files parse, "
            f"{sum(one.exact for one in marks)} bodies exact, "
            f"edit similarity {statistics.fmean(one.edit_similarity for one in marks):.3f}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
