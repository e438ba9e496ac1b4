"""Writes the tables of docs/ from the measurements under benchmarks/results/.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
GIB = 2**30


def streaming_table() -> str:
    rows = json.loads((ROOT / "benchmarks/results/streaming-h100.json").read_text())
    head = "| model, storage | context | layers | limit | a step | GPU peak | host | attention alone | + matrices |"
    lines = [head, "|---" * 9 + "|"]
    lines += [_row(row) for row in rows]
    lines += ["", "Commands, in the order of the rows:", ""]
    lines += [f"    {_command(row)}" for row in rows]
    return "\n".join(lines)


def _row(row: dict) -> str:
    seconds, floor = row["seconds"]["total"], row.get("attention_floor")
    both = None if floor is None else floor + row["matrix_floor"]
    layers = "all" if row["layers"] == row["all_layers"] else f"{row['layers']} of {row['all_layers']}"
    weights = "" if row["plan"]["weights"] != "streamed" else ", weights streamed"
    weights += ", keys and values on the host" if row["plan"]["kv_home"] == "host" else ""
    cells = [
        f"{row['model']}, {row['precision']}{weights}",
        f"{row['context']:,}",
        layers,
        f"{row['vram_cap_gib']} GiB" if row["vram_cap_gib"] else "none",
        f"{seconds:.1f} s" + (" (first)" if row["seconds"] == row["first_seconds"] else ""),
        f"{row['gpu_peak_allocated'] / GIB:.2f} GiB",
        f"{row['host_rss_bytes'] / GIB:.1f} GiB",
        "" if floor is None else f"{floor:.1f} s = {floor / seconds:.2f}",
        "" if both is None else f"{both:.1f} s = {both / seconds:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _command(row: dict) -> str:
    from dataclasses import asdict

    sys.path.insert(0, str(ROOT))
    from engine.plan.stream_plan import StreamPlan

    standard = asdict(StreamPlan(weights="nf4" if row["precision"] == "nf4" else "resident"))
    parts = [f"engine bench streaming --model {row['model']} --context {row['context']} --precision {row['precision']}"]
    if row["layers"] != row["all_layers"]:
        parts.append(f"--layers {row['layers']}")
    if row["vram_cap_gib"]:
        parts.append(f"--vram-cap {row['vram_cap_gib']}")
    if row["seconds"] == row["first_seconds"]:
        parts.append("--repeats 1")
    parts += [f"--plan {name}={value}" for name, value in row["plan"].items() if value != standard[name]]
    return " ".join(parts)


def measured_table() -> str:
    """The README's: what was measured under the limits of smaller cards."""
    rows = json.loads((ROOT / "benchmarks/results/streaming-h100.json").read_text())
    limits = {7.25: "8 GB", 11: "12 GB", 22.5: "24 GB"}
    shown = [row for row in rows if row["vram_cap_gib"] in limits or row["layers"] == row["all_layers"]]
    shown.sort(key=lambda row: row["context"])
    lines = [
        "| context | model | layers | limited to | GPU peak | RAM | a step |",
        "|---" * 7 + "|",
    ]
    for row in shown:
        first = " (first)" if row["seconds"] == row["first_seconds"] else ""
        cells = (
            f"{row['context']:,}",
            f"{row['model']}, {row['precision']}",
            "all" if row["layers"] == row["all_layers"] else f"{row['layers']} of {row['all_layers']}",
            f"a card of {limits[row['vram_cap_gib']]}" if row["vram_cap_gib"] else "–",
            f"{row['gpu_peak_allocated'] / GIB:.1f} GiB",
            f"{row['host_rss_bytes'] / GIB:.0f} GiB",
            f"{row['seconds']['total']:.0f} s{first}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chaos_table() -> str:
    found = json.loads((ROOT / "benchmarks/results/chaos.json").read_text())
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
    return "\n".join([*lines, "", f"Of {found['runs']} fresh processes each. {_surroundings(found)}"])


def terminal_table() -> str:
    found = json.loads((ROOT / "benchmarks/results/terminal.json").read_text())
    lines = ["| | size | bytes/s | redraws/s | of a core | behind |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['case']} | {row['size'].replace('x', '×')} | {row['bytes']:,.0f} | {row['redraws']:.1f} "
        f"| {row['share']:.1%} | {row['behind']:.1f} s |"
        for row in found["costs"]
    ]
    return "\n".join([*lines, "", f"{found['seconds']:.0f} s a case. {_surroundings(found)}"])


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
    from convergence import table

    return table(json.loads((ROOT / "benchmarks/results/convergence.json").read_text()))


def short_context_table() -> str:
    """A row for each length, a column for each way that has been measured."""
    found = json.loads((ROOT / "benchmarks/results/short-context-h100.json").read_text())
    ways = list(dict.fromkeys(row["way"] for row in found))
    cells = {(row["row"], row["tokens"], row["way"]): row for row in found}
    lines = ["| tokens a row | tokens an update | " + " | ".join(ways) + " |", "|---" * (2 + len(ways)) + "|"]
    for length, tokens in dict.fromkeys((row["row"], row["tokens"]) for row in found):
        shown = [_speed(cells.get((length, tokens, way))) for way in ways]
        lines.append(f"| {length:,} | {tokens:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _speed(row: dict | None) -> str:
    if row is None:
        return "not measured"
    if "error" in row:
        return "out of memory"
    return f"{row['tokens'] / row['seconds']:,.0f} tokens/s, {row['gpu_peak_allocated'] / GIB:.1f} GiB"


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
        lines.append(
            f"| {package['package']} | {package['steps']} | "
            f"{perplexity['base']:.2f} → {perplexity['tuned']:.2f} ({change['low']:+.1%} to {change['high']:+.1%}) | "
            f"{parses['base']:.1%} → {parses['tuned']:.1%} of {parses['functions']} ({_points(parses)}) | "
            f"{ends['base']:.1%} → {ends['tuned']:.1%} ({_points(ends)}) | "
            f"{similar['base']:.3f} → {similar['tuned']:.3f} |"
        )
    versions = found["machine"]["versions"]
    return "\n".join([*lines, "", f"torch {versions['torch']}, transformers {versions['transformers']}:", ""]) + (
        f"\n    {found['command']}"
    )


def _points(mark: dict) -> str:
    low, high = mark["difference_interval"].values()
    return f"{low * 100:+.0f} to {high * 100:+.0f} points"


def long_context_table(name: str) -> str:
    """Perplexity over all packages, by model, order and window."""
    from claims import ORDERS, mean_perplexity

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
    (ROOT / "docs" / "benchmarks.md", "short contexts table", short_context_table),
    (ROOT / "docs" / "benchmarks.md", "convergence table", convergence_table),
    (ROOT / "docs" / "benchmarks.md", "start-up table", startup_table),
    (ROOT / "docs" / "benchmarks.md", "terminal table", terminal_table),
    (ROOT / "docs" / "data.md", "packing table", packing_table),
    (ROOT / "docs" / "experiments.md", "long context table", partial(long_context_table, "long-context")),
    (ROOT / "docs" / "experiments.md", "own package table", partial(long_context_table, "long-context-own")),
    (ROOT / "docs" / "embedded-model.md", "packages table", packages_table),
    (ROOT / "docs" / "reliability.md", "chaos table", chaos_table),
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
