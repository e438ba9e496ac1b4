"""Writes the tables of docs/ from the measurements under benchmarks/results/.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.step_tables import (
    ablation_table,
    decode_table,
    experts_table,
    filling_table,
    flash_attention_4_table,
    front_door_table,
    hybrid_table,
    measured_table,
    packed_table,
    probe_table,
    rivals_table,
    short_context_table,
    streaming_table,
    whole_rows_table,
)
from engine.quantities import format_seconds


def chaos_table(name: str = "chaos") -> str:
    """What was killed, damaged and mutated, how often, and what was lost."""
    found = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    lines = ["| what | how often | seconds | lost or damaged |", "|---|---|---|---|"]
    for row in found["scenarios"]:
        counts = {what: count for what, count in row.items() if what not in ("name", "seconds", "lost", "phases")}
        often = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        lines.append(f"| {row['name']} | {often} | {row['seconds']:.0f} | {row['lost'] or 'nothing'} |")
    kills = sum(row.get("kills", 0) for row in found["scenarios"])
    seconds = sum(row["seconds"] for row in found["scenarios"])
    where = f"{found['machine']}, Python {found['python']}, torch {found['torch']}"
    return "\n".join(
        [*lines, "", f"{kills} kills in all, {seconds / 60:.0f} minutes, seed {found['seed']}, on {where}."]
    )


def startup_table() -> str:
    found = json.loads((ROOT / "benchmarks/results/startup.json").read_text())
    lines = ["| | median | fastest | slowest | limit |", "|---|---|---|---|---|"]
    for row in found["seconds"]:
        figures = " | ".join(f"{row[name]:.2f} s" for name in ("median", "fastest", "slowest", "limit"))
        lines.append(f"| {row['what']} | {figures} |")
    lines += ["", f"Of {found['runs']} fresh processes each. {_surroundings(found)}"]
    cpu = found["cpu"]
    lines += ["", "| CPU seconds | median | least | most |", "|---|---|---|---|"]
    for row in cpu["rows"]:
        figures = " | ".join(f"{row[name]:.2f} s" for name in ("median", "least", "most"))
        lines.append(f"| {row['what']} | {figures} |")
    libraries = ", ".join(f"{name} {cpu[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    where = f"{cpu['cores']} shared cores under a load of {cpu['load']} when it began"
    lines += ["", f"Of {cpu['runs']} fresh processes each. {libraries};", f"{where}."]
    train = found["train"]
    lines += [
        "",
        f"| `engine train`, {train['model']} in 4 bits, by the clock | first start | later ones |",
        "|---|---|---|",
    ]
    for row in train["rows"]:
        later = ", ".join(f"{seconds:.1f}" for seconds in row["later"])
        lines.append(f"| {row['what']} | {row['first']:.1f} s | {later} s |")
    versions = ", ".join(f"{name} {train['machine']['versions'][name]}" for name in ("torch", "transformers"))
    return "\n".join([*lines, "", f"One {train['machine']['card']}, {versions}."])


def terminal_table() -> str:
    found = json.loads((ROOT / "benchmarks/results/terminal.json").read_text())
    lines = ["| | size | bytes/s | redraws/s | of a core | behind |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['case']} | {row['size'].replace('x', '×')} | {row['bytes']:,.0f} | {row['redraws']:.1f} "
        f"| {row['share']:.1%} | {row['behind']:.1f} s |"
        for row in found["costs"]
    ]
    return "\n".join([*lines, "", f"{found['seconds']:.0f} s a case. {_surroundings(found)}"])


def schedules_table() -> str:
    """Schedules of some hours, by card and size of the repository, beside a run at the highest tier alone."""
    found = json.loads((ROOT / "benchmarks/results/schedules.json").read_text())
    lines = [
        f"| card | tokens | updates in {found['hours']:g} hours | epochs | in all | without a limit | "
        "the highest tier alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        schedule, unlimited, ceiling = row["schedule"], row["unlimited"], row["ceiling"]
        stages, more = _stages(schedule), _stages(unlimited)
        more = "the same" if more == stages else f"{more}; {format_seconds(unlimited['seconds'])}"
        alone = f"tier {ceiling['tier']}: {ceiling['updates_an_epoch']} of {format_seconds(ceiling['step_seconds'])}"
        lines.append(
            f"| {row['card']} | {row['repository_tokens']:,} | {stages} | "
            f"{schedule['epochs']:.1f} | {format_seconds(schedule['seconds'])} | {more} | {alone} |"
        )
    return "\n".join([*lines, "", f"{found['model']}, all of it predicted:", "", f"    {found['command']}"])


def _stages(schedule: dict) -> str:
    stages = ", then ".join(f"{stage['updates']} on {stage['context'] / 1024:g}K" for stage in schedule["stages"])
    return f"{schedule['updates']}: {stages}"


def _surroundings(found: dict) -> str:
    return (
        f"CPython {found['python']}, textual {found['textual']}, {found['cores']} shared cores under a load of "
        f"{found['load']} when it began."
    )


def memory_table() -> str:
    found = json.loads((ROOT / "benchmarks/results/chaos.json").read_text())
    (phases,) = (row["phases"] for row in found["scenarios"] if "phases" in row)
    columns = list(next(iter(phases.values())))
    lines = ["| memory runs out in | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {phase} | " + " | ".join(str(counts[name]) for name in columns) + " |" for phase, counts in phases.items()
    ]
    return "\n".join(lines)


def convergence_table() -> str:
    from benchmarks.convergence import table

    return table(json.loads((ROOT / "benchmarks/results/convergence.json").read_text()))


def packing_table() -> str:
    """Packed windows, padded rows, and documents one by one."""
    found = json.loads((ROOT / "benchmarks/results/packing-cpu.json").read_text())
    heads = ("window", "documents a window", "packed", "padded", "one by one", "packed / padded", "empty if padded")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += [
        f"| {row['context']:,} | {row['documents'] / row['windows']:.1f} | {row['packed_per_second']:,.0f} | "
        f"{row['padded_per_second']:,.0f} | {row['alone_per_second']:,.0f} | "
        f"{row['packed_per_second'] / row['padded_per_second']:.1f} | {row['empty_padded']:.0%} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def packages_table() -> str:
    """Base and tuned model on packages that neither had seen."""
    found = json.loads((ROOT / "benchmarks/results/packages.json").read_text())
    lines = [
        "| package | updates | perplexity | completed functions that parse | that come to an end | edit similarity |",
        "|---|---|---|---|---|---|",
    ]
    for package in found["packages"]:
        marks = {(task["task"], mark["name"]): mark for task in package["tasks"] for mark in task["rows"]}
        parses, ends, similar = (marks["completion", name] for name in ("parses", "ends", "edit similarity"))
        perplexity = package["perplexity"]
        change = perplexity["change_interval"]
        between = _relative([change["low"], change["high"]]) if change else "too few files"
        lines.append(
            f"| {package['package']} | {package['steps']} | "
            f"{perplexity['base']:.2f} → {perplexity['tuned']:.2f} ({between}) | "
            f"{parses['base']:.1%} → {parses['tuned']:.1%} of {parses['functions']} ({_points(parses)}) | "
            f"{ends['base']:.1%} → {ends['tuned']:.1%} ({_points(ends)}) | "
            f"{similar['base']:.3f} → {similar['tuned']:.3f} |"
        )
    versions = found["machine"]["versions"]
    return "\n".join([*lines, "", f"torch {versions['torch']}, transformers {versions['transformers']}:", ""]) + (
        f"\n    {found['command']}"
    )


def fim_table() -> str:
    """What a share of fill-in-the-middle changes in the loss of held-out functions' bodies."""
    found = json.loads((ROOT / "benchmarks/results/fim-shares-h200.json").read_text())
    bodies = {(row["share"], row["bodies"]): row for row in found["bodies"]}
    lines = [
        "| share | perplexity | bodies completed, nats a token | bodies filled in, nats a token |",
        "|---|---|---|---|",
    ]
    for share in dict.fromkeys(share for share, _ in bodies):
        perplexities = [row["perplexity"]["tuned"] for row in found["rows"] if row["share"] == share]
        ways = (bodies[share, way] for way in ("completed", "filled in"))
        cells = " | ".join(f"{row['tuned']:.3f}{_difference(row)}" for row in ways)
        lines.append(f"| {share:g} | {sum(perplexities) / len(perplexities):.3f} | {cells} |")
    completed, filled = (bodies[0.0, way]["base"] for way in ("completed", "filled in"))
    base = found["rows"][0]["perplexity"]["base"]
    lines.insert(2, f"| base model | {base:.3f} | {completed:.3f} | {filled:.3f} |")
    seeds, settings, versions = {row["seed"] for row in found["rows"]}, found["settings"], found["machine"]["versions"]
    lines += [
        "",
        f"{found['package']}, {settings['steps']} updates of 2 windows of {settings['context']:,} tokens, "
        f"{len(seeds)} seeds, {settings['bodies']} bodies; 95% intervals of the difference to share 0. "
        f"{found['machine']['card']}, torch {versions['torch']}, transformers {versions['transformers']}:",
        "",
        f"    {found['command']}",
    ]
    return "\n".join(lines)


def _difference(row: dict) -> str:
    if row["difference_interval"] is None:
        return ""
    low, high = row["difference_interval"].values()
    return f" ({-row['less_than_at_0']:+.3f}, {low:+.3f} to {high:+.3f})"


def evidence_table(name: str = "evidence-h200") -> str:
    """What windows, rates, ranks and epochs come to at equal GPU time."""
    found = _evidence(name)
    lines = [
        "| run | runs | updates | seconds of updates | held-out perplexity | against growing |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["variants"]:
        if row["change"] is None:
            continue
        against = ""
        if row["variant"] != "growing":
            interval = "too few" if row["interval"] is None else _relative(row["interval"])
            against = f"{row['against_growing']:+.1%} ({interval})"
        lines.append(
            f"| {row['variant']} | {row['runs']} | {row['updates']:.0f} | {row['update_seconds']:.1f} | "
            f"{row['change']:+.1%} | {against} |"
        )
    missing = sum("problem" in row for row in found["runs"])
    ran = f"{missing} of {len(found['runs'])} runs had no time left" if missing else f"{len(found['runs'])} runs"
    after = f"{found['machine']['card']}, torch {found['machine']['versions']['torch']}, {found['model']}"
    lines += ["", f"{after}; {ran}:", "", f"    {found['command']}"]
    return "\n".join(lines)


def before_after_table() -> str:
    """The default run of each package beside the base model, with its promise."""
    found = _evidence("evidence-packages-h200")
    lines = [
        "| package | perplexity | names guessed | new in their file | other seeds: perplexity, names "
        "| whole run, predicted and taken |",
        "|---" * 6 + "|",
    ]
    for row in found["runs"]:
        if row["seed"] != 0:
            continue
        names = next(task["rows"] for task in row["guessed"] if task["task"] == "next name")
        others = [one for one in found["runs"] if one["package"] == row["package"] and one["seed"] != 0]
        spread = "; ".join(
            f"{one['perplexity']['change']:+.1%}, {one['guessed'][1]['rows'][0]['tuned']:.1%}" for one in others
        )
        newer = " (newer than the model)" if row["package"] in found["newer_than_the_model"] else ""
        perplexity = row["perplexity"]
        change = perplexity["change_interval"]
        ends = _relative([change["low"], change["high"]]) if change else "too few files"
        lines.append(
            f"| {row['package']}{newer} | {perplexity['base']:.2f} → {perplexity['tuned']:.2f} ({ends}) | "
            f"{_before_after(names[0])} | {_before_after(names[1])} | {spread} | "
            f"{row['predicted_seconds']:.0f} s, {row['seconds']:.0f} s |"
        )
    lines += ["", "| request | mark | way | base model | this way | 95% interval of the difference | requests |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in found["marks"]:
        low, high = (100 * end for end in row["interval"])
        lines.append(
            f"| {row['task']} | {row['mark']} | {row['arm']} | {row['base']:.1%} | {row['value']:.1%} | "
            f"{low:+.1f} to {high:+.1f} points | {row['requests']} |"
        )
    machine = found["machine"]
    after = f"{machine['card']}, torch {machine['versions']['torch']}, {found['model']}; {len(found['runs'])} runs:"
    return "\n".join([*lines, "", after, "", f"    {found['command']}"])


def _before_after(mark: dict) -> str:
    ends = mark["difference_interval"]
    between = f"{100 * ends['low']:+.1f} to {100 * ends['high']:+.1f} points" if ends else "too few files"
    return f"{mark['base']:.1%} → {mark['tuned']:.1%} ({between})"


def _evidence(name: str = "evidence-h200") -> dict:
    found: dict = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found


def _relative(ends: list[float]) -> str:
    return f"{ends[0]:+.1%} to {ends[1]:+.1%}"


def _points(mark: dict) -> str:
    low, high = mark["difference_interval"].values()
    return f"{low * 100:+.0f} to {high * 100:+.0f} points"


def long_context_table(name: str) -> str:
    """Perplexity over all packages, by model, order and window."""
    from benchmarks.claim_findings import ORDERS, mean_perplexity

    found = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    windows = sorted({row["context"] for row in found["rows"]})
    lines = ["| model | order of files | " + " | ".join(f"{n:,}" for n in windows) + " |"]
    lines.append("|---" * (2 + len(windows)) + "|")
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        for order in (order for order in ORDERS if any(row["order"] == order for row in found["rows"])):
            cells = (f"{mean_perplexity(found, model=model, order=order, context=n):.2f}" for n in windows)
            lines.append(f"| {model} | {order} | " + " | ".join(cells) + " |")
    versions = found["versions"]
    return "\n".join(
        [
            *lines,
            "",
            f"torch {versions['torch']}, transformers {versions['transformers']}:",
            "",
            f"    {found['command']}",
        ]
    )


TABLES = (
    (ROOT / "README.md", "measured table", measured_table),
    (ROOT / "docs" / "benchmarks.md", "streaming table", streaming_table),
    (ROOT / "docs" / "benchmarks.md", "whole steps table", whole_rows_table),
    (ROOT / "docs" / "benchmarks.md", "packed weights table", packed_table),
    (ROOT / "docs" / "benchmarks.md", "experts table", experts_table),
    (ROOT / "docs" / "benchmarks.md", "hybrid table", hybrid_table),
    (ROOT / "docs" / "experiments.md", "evidence table", evidence_table),
    (ROOT / "docs" / "experiments.md", "before and after table", before_after_table),
    (ROOT / "docs" / "experiments.md", "rate table", partial(evidence_table, "evidence-rate-h200")),
    (ROOT / "docs" / "experiments.md", "trained length table", partial(evidence_table, "evidence-trained-h200")),
    (ROOT / "docs" / "benchmarks.md", "short contexts table", short_context_table),
    (ROOT / "docs" / "benchmarks.md", "unsloth table", rivals_table),
    (ROOT / "docs" / "benchmarks.md", "gemma table", partial(packed_table, "gemma-h200")),
    (ROOT / "docs" / "benchmarks.md", "filling table", filling_table),
    (ROOT / "docs" / "benchmarks.md", "front door table", front_door_table),
    (ROOT / "docs" / "benchmarks.md", "FlashAttention-4 table", flash_attention_4_table),
    (ROOT / "docs" / "benchmarks.md", "generated text table", decode_table),
    (ROOT / "docs" / "benchmarks.md", "ablation table", ablation_table),
    (ROOT / "docs" / "benchmarks.md", "probe table", probe_table),
    (ROOT / "docs" / "benchmarks.md", "convergence table", convergence_table),
    (ROOT / "docs" / "benchmarks.md", "start-up table", startup_table),
    (ROOT / "docs" / "benchmarks.md", "terminal table", terminal_table),
    (ROOT / "docs" / "planning.md", "schedules table", schedules_table),
    (ROOT / "docs" / "data.md", "packing table", packing_table),
    (ROOT / "docs" / "experiments.md", "long context table", partial(long_context_table, "long-context")),
    (ROOT / "docs" / "experiments.md", "own package table", partial(long_context_table, "long-context-own")),
    (ROOT / "docs" / "embedded-model.md", "packages table", packages_table),
    (ROOT / "docs" / "embedded-model.md", "fill-in-the-middle table", fim_table),
    (ROOT / "docs" / "reliability.md", "chaos table", chaos_table),
    (ROOT / "docs" / "reliability.md", "odd table", partial(chaos_table, "chaos-odd")),
    (ROOT / "docs" / "reliability.md", "memory table", memory_table),
)
"""Page, the name between its two marks, and what stands between them."""


def main() -> int:
    status = 0
    for path, name, table in TABLES:
        page = path.read_text()
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        made = f"{before}{begin}\n{table()}\n\n{end}{after}"
        if "--check" not in sys.argv:
            path.write_text(made)
        elif made != page:
            print(f"{path.name} differs from benchmarks/results: run python benchmarks/tables.py")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
