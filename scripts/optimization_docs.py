"""Writes docs/optimizations.md and docs/research.md from the registry and the recorded proofs.

python scripts/optimization_docs.py [--check]           write both pages, or fail if they are not current
python scripts/optimization_docs.py --record NAME       run every proof here first: benchmarks/results/verify-NAME.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from engine.plan.optimizations import Optimization, optimizations, papers

RESULTS = ROOT / "benchmarks/results"
PAGES = {name: ROOT / "docs" / f"{name}.md" for name in ("optimizations", "research")}
TITLES = {
    "extreme": "Extreme: what makes long contexts possible",
    "standard": "Standard",
    "beyond": "Beyond the 43",
}
GENERATED = (
    "<!-- Written by `make docs` from assets/optimizations.toml, assets/papers.toml and the recorded proofs. -->"
)


def record(name: str) -> None:
    from engine.commands.quiet_libraries import libraries_logged

    with libraries_logged() as terminal:
        from engine.verify.proof import quieten

        quieten()
        from engine.benchmarking.machine import describe_machine
        from engine.models.placement import choose_placement
        from engine.verify.runner import verify

        device = choose_placement("auto", "auto").device
        verdicts = []
        for verdict in verify(optimizations(), device):
            verdicts.append(dataclasses.asdict(verdict))
            text = f"{verdict.status} {verdict.id}: {verdict.evidence or verdict.reason}"
            print(text, file=terminal.err, flush=True)
        stored = {"command": "engine verify --json", "machine": describe_machine(device), "verdicts": verdicts}
    (RESULTS / f"verify-{name}.json").write_text(
        json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def recorded() -> dict[str, dict]:
    """Measurements by name of their machine."""
    return {
        path.stem.removeprefix("verify-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("verify-*.json"))
    }


def machine_in_words(stored: dict) -> str:
    machine = stored["machine"]
    place = machine["card"] or "a processor"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return f"{place}, Python {machine['python']}, {versions}"


def optimizations_page(proofs: dict[str, dict]) -> str:
    rows = optimizations()
    lines = [
        "# Optimisations",
        "",
        GENERATED,
        "",
        f"{len(rows)} techniques, each implemented once, where it belongs, and proven by `engine verify`: "
        f"{sum(r.group == 'extreme' for r in rows)} extreme, {sum(r.group == 'standard' for r in rows)} standard, "
        f"{sum(r.group == 'beyond' for r in rows)} beyond these. `engine optimizations` says which of them act in a "
        "run on your machine, and what each changes there; `engine ablate` measures them on your repository.",
        "",
        "≈ marks what is approximate or disturbs training at random; it is off unless asked for, but for two: weights "
        "in 4 bits where nothing else fits, and stretched positions past a model's trained length. "
        "`--set` takes what stands under *switch*.",
        "",
    ]
    for group, title in TITLES.items():
        lines += [f"## {title}", "", "| | what it does | switch | effect | by default |", "|---|---|---|---|---|"]
        lines += [table_row(row) for row in rows if row.group == group]
        lines.append("")
    lines += ["## What excludes what", ""]
    seen = set()
    for row in rows:
        for other in row.conflicts:
            if (other, row.id) not in seen:
                seen.add((row.id, other))
                lines.append(f"- `{row.id}` and `{other}`: {row.conflict_reasons[other]}")
    lines.append("")
    for name, stored in proofs.items():
        lines += proofs_section(name, stored)
    return "\n".join(lines).rstrip() + "\n"


def table_row(row: Optimization) -> str:
    switch = "<br>".join(f"`{path}={text(value)}`" for path, value in row.switch_on.items()) or "–"
    name = f"**{row.id}**{'' if row.exact else ' ≈'}"
    return f"| {name} | {row.sentence} | {switch} | {row.effect} | {row.default} |"


def text(value: object) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def proofs_section(name: str, stored: dict) -> list[str]:
    verdicts = stored["verdicts"]
    counts = {status: sum(v["status"] == status for v in verdicts) for status in ("passed", "failed", "unavailable")}
    lines = [
        f"## Proofs: {name}",
        "",
        f"`engine verify` on {machine_in_words(stored)}: {counts['passed']} passed, {counts['failed']} failed, "
        f"{counts['unavailable']} unavailable." + (f" {stored['note']}" if "note" in stored else ""),
        "",
        "| | | seen |",
        "|---|---|---|",
    ]
    lines += [f"| {v['id']} | {v['status']} | {v['evidence'] or v['reason']} |" for v in verdicts]
    shared = ", ".join(row.id for row in optimizations() if row.proof.startswith("engine.verify.distributed:"))
    return [*lines, "", f"Two processes on the machine's processor each: {shared}.", ""]


def research_page(proofs: dict[str, dict]) -> str:
    cited: dict[str, list[Optimization]] = {}
    for row in optimizations():
        for arxiv in row.papers:
            cited.setdefault(arxiv, []).append(row)
    evidence: dict[str, str] = {}
    for stored in proofs.values():
        evidence |= {v["id"]: v["evidence"] for v in stored["verdicts"] if v["status"] == "passed"}
    lines = [
        "# Research",
        "",
        GENERATED,
        "",
        f"The {len(papers())} papers behind the optimisations: what of each is implemented, where, and what its proof "
        "showed on small models (machines and versions stand in [optimizations.md](optimizations.md)). A proof shows "
        "that a technique does what it says; what it gains on a task is measured in [benchmarks.md](benchmarks.md).",
        "",
    ]
    for paper in sorted(papers().values(), key=lambda paper: (paper.year, paper.arxiv)):
        lines += [f"## {paper.title}", "", f"{paper.authors}, {paper.year}, [arXiv {paper.arxiv}]({paper.url})", ""]
        for row in cited[paper.arxiv]:
            lines.append(f"- **{row.id}**{'' if row.exact else ' (approximate)'}: {row.sentence}")
            where = ", ".join(f"`{path}`" for path in row.implemented_in.split(", "))
            lines.append(f"  Implemented in {where}.")
            seen = evidence.get(row.id)
            lines.append(
                f"  Measured: {seen}." if seen else "  Not measured yet: no machine on record could run its proof."
            )
        lines.append("")
    lines += ["## Without a paper on arXiv", ""]
    lines += [f"- **{row.id}**: {row.source}" for row in optimizations() if not row.papers]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", metavar="NAME")
    args = parser.parse_args()
    if args.record:
        record(args.record)
    proofs = recorded()
    pages = {"optimizations": optimizations_page(proofs), "research": research_page(proofs)}
    stale = [name for name, page in pages.items() if not PAGES[name].exists() or PAGES[name].read_text("utf-8") != page]
    if args.check:
        if stale:
            print(f"not current, run `make docs`: {', '.join(f'docs/{name}.md' for name in stale)}")
        return bool(stale)
    for name in stale:
        PAGES[name].write_text(pages[name], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
