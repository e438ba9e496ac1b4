"""Measures how often a definition stands before its uses in the engine's order, by a resolver of its own.

    python benchmarks/import_order.py DIR... [--json FILE]

Each language has one rule (import_resolvers.py), which shares no code with engine.data.imports. A pair is a file that
uses and a file that defines; it counts where one file alone defines the name (or lies at the path), and where the two
files are in no cycle of such pairs. Prints, by language, the share of pairs whose definition comes earlier: in the
engine's order, and in the order of the paths.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.import_resolvers import RULES
from benchmarks.name_resolvers import Pair


def ordered(folder: Path) -> Iterator[str]:
    """Names of the training files as the engine orders them."""
    from engine.config import DataSection
    from engine.data.reading import read
    from engine.data.sources import open_sources

    data = DataSection(repositories=[str(folder)], held_out_fraction=1e-9, near_duplicates="keep", secrets="keep")
    with open_sources(data) as sources:
        reading = read(sources.collection, data, sources.texts, lambda *_: None)
    yield from (item.file.name for item in reading.files[: len(reading.files) - reading.held_out])


def components(pairs: set[Pair]) -> dict[str, int]:
    """Number of the strongly connected component of each file (Kosaraju)."""
    ahead, back = defaultdict(list), defaultdict(list)
    for user, definer in sorted(pairs):
        ahead[user].append(definer)
        back[definer].append(user)
    finished, seen = [], set()
    for first in sorted({name for pair in pairs for name in pair}):
        stack = [(first, iter(ahead[first]))] if first not in seen else []
        seen.add(first)
        while stack:
            node, others = stack[-1]
            following = next((other for other in others if other not in seen), None)
            if following is None:
                finished.append(node)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(ahead[following])))
    number: dict[str, int] = {}
    for count, root in enumerate(reversed(finished)):
        stack_ = [root] if root not in number else []
        while stack_:
            node = stack_.pop()
            if node not in number:
                number[node] = count
                stack_ += back[node]
    return number


def measure(folder: Path, show: int) -> dict[str, dict[str, float]]:
    names = list(ordered(folder))
    place = {name: position for position, name in enumerate(names)}
    path_place = {name: position for position, name in enumerate(sorted(names))}
    table = {}
    for language, (endings, rule) in RULES.items():
        texts = {}
        for name in names:
            if name.endswith(endings):
                texts[name] = (folder / name).read_text("utf-8", "replace")
        if len(texts) < 2:
            continue
        needs_root = rule.__code__.co_argcount == 2
        pairs = rule(texts, folder) if needs_root else rule(texts)
        number = components(pairs)
        counted = [pair for pair in sorted(pairs) if number[pair[0]] != number[pair[1]]]
        if not counted:
            continue
        late = [pair for pair in counted if place[pair[1]] > place[pair[0]]]
        for user, definer in late[:show]:
            print(f"  {language}: {user} uses {definer}", file=sys.stderr)
        table[language] = {
            "files": len(texts),
            "pairs": len(counted),
            "in_cycles": len(pairs) - len(counted),
            "earlier": 1 - len(late) / len(counted),
            "by_path": sum(path_place[b] < path_place[a] for a, b in counted) / len(counted),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="name N pairs that come too late")
    options = parser.parse_args()
    results = {}
    print(f"{'':24} {'language':11} {'files':>6} {'pairs':>7} {'cyclic':>7} {'earlier':>8} {'by path':>8}")
    for folder in options.folders:
        results[folder.resolve().name] = table = measure(folder.resolve(), options.show)
        for language, row in table.items():
            print(
                f"{folder.resolve().name:24} {language:11} {row['files']:6,} {row['pairs']:7,} {row['in_cycles']:7,} "
                f"{row['earlier']:8.1%} {row['by_path']:8.1%}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
