"""Tables of what steps took on a GPU: speed, memory, and how far predictions were off. Written by tables.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GIB = 2**30


def streaming_table() -> str:
    rows = json.loads((RESULTS / "streaming.json").read_text())
    head = (
        "| model, storage | context | layers | card | limit | a step | GPU peak | host | attention alone | + matrices |"
    )
    lines = [head, "|---" * 10 + "|"]
    lines += [_row(row) for row in rows]
    lines += ["", "Commands, in the order of the rows:", ""]
    lines += [f"    {_command(row)}" for row in rows]
    return "\n".join(lines)


def _row(row: dict) -> str:
    seconds, floor = row["seconds"]["total"], row.get("attention_floor")
    both = None if floor is None else floor + row["matrix_floor"]
    layers = "all" if row["layers"] == row["all_layers"] else f"{row['layers']} of {row['all_layers']}"
    weights = "" if "streamed" not in row["plan"]["weights"] else ", weights streamed"
    weights += ", keys and values on the host" if row["plan"]["kv_home"] == "host" else ""
    cells = [
        f"{row['model']}, {row['precision']}{weights}",
        f"{row['context']:,}",
        layers,
        row["card"].split()[1],
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


NAMES = {"qwen2.5-coder-7b": "Qwen2.5-Coder-7B", "gemma-4-12b": "Gemma 4 12B", "gemma-4-e4b": "Gemma 4 E4B"}


def packed_table(name: str = "streamed-4-bit-h200") -> str:
    """Weights of 4 bits, some of which wait on the host, beside what the planner says."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    head = "| model | context | limit | weights | a step | predicted | GPU peak | predicted | host |"
    lines = [head, "|---" * 9 + "|"]
    for row in rows:
        said = row["predicted"]
        cells = [
            NAMES.get(row["model"], "32B shapes, 64 layers"),
            f"{row['context']:,}",
            f"{row['vram_cap_gib']} GiB" if row["vram_cap_gib"] else "none",
            "4 bits, on the host" if row["plan"]["weights"] == "nf4-streamed" else "4 bits, resident",
            f"{row['seconds']['total']:.2f} s",
            f"{said['seconds']:.2f} s",
            f"{row['gpu_peak_allocated'] / GIB:.2f} GiB",
            f"{said['gpu_allocated'] / GIB:.2f} GiB",
            f"{row['host_rss_bytes'] / GIB:.1f} GiB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def experts_table() -> str:
    """A model with experts in 4 bits on the host, beside what the planner says and the floor."""
    rows = json.loads((RESULTS / "experts-h200.json").read_text())["rows"]
    head = "| context | adapters on | a step | predicted | floor | tokens a second | GPU peak | predicted |"
    lines = [head, "|---" * 8 + "|"]
    for row in rows:
        said, seconds = row["predicted"], row["seconds"]["total"]
        floor = row["attention_floor"] + row["matrix_floor"] + row["weights_floor"]
        first = " (first)" if seconds == row["first_seconds"]["total"] else ""
        cells = [
            f"{row['context']:,}",
            "attention and experts" if "experts" in row["targets"] else "attention",
            f"{seconds:.2f} s{first}",
            f"{said['seconds']:.2f} s",
            f"{floor:.2f} s",
            f"{row['context'] / seconds:,.0f}",
            f"{row['gpu_peak_allocated'] / GIB:.2f} GiB",
            f"{said['gpu_allocated'] / GIB:.2f} GiB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hybrid_table() -> str:
    """Steps of a model of which three quarters of the layers are recurrent."""
    found = json.loads((RESULTS / "hybrid-h200.json").read_text())
    head = "| kernels | context | tile | weights | limit | a step "
    head += "| forward, loss, backward | GPU peak | host | gradient norm |"
    lines = [head, "|---" * 10 + "|"]
    for row in found["rows"]:
        case, seconds = row["case"], row["seconds"]
        cells = [
            row["kernels"],
            f"{case['context']:,}",
            f"{case['plan']['tile']:,}",
            "streamed" if case["plan"].get("weights") == "streamed" else "resident",
            f"{case['cap']} GiB" if "cap" in case else "none",
            f"{seconds['total']:.1f} s" + (" (first)" if seconds == row["first_seconds"] else ""),
            ", ".join(f"{seconds[stage]:.1f}" for stage in ("forward", "loss", "backward")),
            f"{row['gpu_peak_allocated'] / GIB:.2f} GiB",
            f"{row['host_rss_bytes'] / GIB:.1f} GiB",
            f"{row['gradient_norm']:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"    {command}" for command in found["commands"])])


def whole_rows_table() -> str:
    """Whole steps over half a million tokens, beside what the planner said of the same layout."""
    rows = json.loads((RESULTS / "whole-rows-h200.json").read_text())["rows"]
    head = "| model | context | limit | a step | predicted | forward, loss, backward | GPU peak | predicted "
    lines = [head + "| host | predicted |", "|---" * 10 + "|"]
    for row in rows:
        asked, said, was = row["row"], row["predicted"], row["measured"]
        cells = [
            f"{asked['model']}, {asked['precision']}",
            f"{asked['context']:,}",
            f"{asked['cap']} GiB",
            f"{was['seconds']:.1f} s",
            f"{said['seconds']:.1f} s",
            ", ".join(f"{was['stages'][stage]:.1f}" for stage in ("forward", "loss", "backward")),
            f"{was['gpu_allocated'] / GIB:.2f} GiB",
            f"{said['gpu_allocated'] / GIB:.2f} GiB",
            f"{was['host_process'] / GIB:.1f} GiB",
            f"{said['host'] / GIB:.1f} GiB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"    {row['command']}" for row in rows)])


def streamed_steps() -> list[dict]:
    """Streamed steps that were measured: no part of a model's layers where all of them were, under the same limit."""
    rows = json.loads((RESULTS / "streaming.json").read_text())
    rows += map(_whole_row, json.loads((RESULTS / "whole-rows-h200.json").read_text())["rows"])
    whole = {_asked(row) for row in rows if row["layers"] == row["all_layers"]}
    return [row for row in rows if row["layers"] == row["all_layers"] or _asked(row) not in whole]


def _asked(row: dict) -> tuple:
    return tuple(row[name] for name in ("model", "precision", "context", "vram_cap_gib"))


def _whole_row(row: dict) -> dict:
    """A whole step in the form of the streamed ones."""
    asked, was = row["row"], row["measured"]
    seconds = {"total": was["seconds"], **was["stages"]}
    return {
        **{name: asked[name] for name in ("model", "precision", "context")},
        "layers": asked["layers"] or row["all_layers"],
        "all_layers": row["all_layers"],
        "vram_cap_gib": asked["cap"],
        "seconds": seconds,
        "first_seconds": seconds,
        "gpu_peak_allocated": was["gpu_allocated"],
        "host_rss_bytes": was["host_process"],
    }


def decode_table() -> str:
    """Generated text of this project and of transformers, in turn on one machine."""
    rows = [row for row in _decoding() if row["part"].startswith("decode")]
    lines = ["| | batch | transformers.generate | engine | ratios in turn | same tokens |", "|---" * 6 + "|"]
    for row in rows:
        precision = row["part"].split()[1]
        speeds = [f"{row['tokens_per_second'][who]:,.0f} tokens/s" for who in ("transformers.generate", "engine")]
        ratios = ", ".join(f"{ratio:.1f}" for ratio in row["ratios"])
        cells = ["NF4" if precision == "nf4" else precision, row["batch"], *speeds, ratios, f"{row['same_tokens']:.0%}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def front_door_table() -> str:
    """Short steps of `engine train` as a user starts it, with CUDA graphs and without."""
    lines = [
        "| `engine train` | tokens/s | a step, median | first event | training begins | in all |",
        "|---" * 6 + "|",
    ]
    for row in _decoding():
        if row["part"] == "train":
            cells = [
                f"graphs {'on' if row['graphs'] else 'off'}",
                f"{row['tokens_per_second']:,.0f}",
                f"{1000 * row['median_seconds']:.0f} ms",
                f"{row['before_the_first_event']:.1f} s",
                f"{row['phases']['training']:.1f} s",
                f"{row['whole']:.0f} s",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _decoding() -> list[dict]:
    return json.loads((RESULTS / "decode-h200.json").read_text())


def measured_table() -> str:
    """The README's: what was measured under the limits of smaller cards."""
    rows = streamed_steps()
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


def short_context_table(name: str = "short-context-h200") -> str:
    """A row for each length, a column for each way that has been measured."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    ways = list(dict.fromkeys(row["way"] for row in found))
    cells = {(row["row"], row["tokens"], row["way"]): row for row in found}
    lines = ["| tokens a row | tokens an update | " + " | ".join(ways) + " |", "|---" * (2 + len(ways)) + "|"]
    for length, tokens in dict.fromkeys((row["row"], row["tokens"]) for row in found):
        shown = [_speed(cells.get((length, tokens, way))) for way in ways]
        lines.append(f"| {length:,} | {tokens:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def rivals_table() -> str:
    """The step of `engine train` beside unsloth in one run, and the step that keeps nothing in another."""
    found = json.loads((RESULTS / "short-context-unsloth-h200.json").read_text())
    trained, plain = ({(row["row"], row["tokens"], row["way"]): row for row in rows} for rows in found["runs"])
    machine, unsloth, kept = found["machine"], "unsloth", "unsloth, activations kept"
    parts = []
    for cells, own, rivals in ((trained, "as engine train runs it", (unsloth, kept)), (plain, "streamed", (unsloth,))):
        ways = [*rivals, own]
        lines = [
            "| tokens a row | tokens an update | " + " | ".join([*ways, *(f"times {way}" for way in rivals)]) + " |"
        ]
        lines.append("|---" * (len(ways) + len(rivals) + 2) + "|")
        for row, tokens in dict.fromkeys((row, tokens) for row, tokens, _ in cells):
            of = {way: cells[row, tokens, way] for way in ways}
            shown = [_speed(of[way]) for way in ways] + [
                f"{of[way]['seconds'] / of[own]['seconds']:.2f}" for way in rivals
            ]
            lines.append(f"| {row:,} | {tokens:,} | " + " | ".join(shown) + " |")
        parts += [*lines, ""]
    versions = machine["versions"]
    about = f"Unsloth {found['unsloth']}, {machine['card']}, torch {versions['torch']}, transformers "
    about += f"{versions['transformers']}, bitsandbytes {versions['bitsandbytes']}, Triton {versions['triton']}:"
    return "\n".join([*parts, about, "", *(f"    {command}" for command in found["commands"])])


def _speed(row: dict | None) -> str:
    if row is None:
        return "not measured"
    if "error" in row:
        return "out of memory"
    return f"{row['tokens'] / row['seconds']:,.0f} tokens/s, {row['gpu_peak_allocated'] / GIB:.1f} GiB"


def ablation_table() -> str:
    """A row for each optimisation in the other state, by length."""
    found = json.loads((RESULTS / "ablation.json").read_text())
    lines = ["| tokens | layers | what | tokens/s | GPU peak | RAM |", "|---" * 6 + "|"]
    for row in sorted(found["rows"], key=lambda row: row["context"]):
        layers = f"{row['layers']} of 28" if row.get("layers") else "all"
        figures = f"{row['tokens_per_second']:,.0f} | {row['gpu_peak'] / GIB:.2f} GiB | "
        figures += f"{row['host_peak'] / GIB:.1f} GiB"
        lines.append(f"| {row['context']:,} | {layers} | {row['what']} | {figures} |")
    return "\n".join([*lines, "", f"{_machine(found['machine'])}"])


def filling_table() -> str:
    """Steps over windows of their own lengths, and of a few."""
    found = json.loads((RESULTS / "filling-h200.json").read_text())
    lines = ["| windows | lengths | median step | tokens/s |", "|---" * 4 + "|"]
    for row in found["rows"]:
        speed = row["tokens"] / sum(row["seconds"])
        lines.append(f"| {row['way']} | {row['lengths']} | {row['median_seconds']:.3f} s | {speed:,.0f} |")
    return "\n".join([*lines, "", f"{_machine(found['machine'])} `{found['command']}`"])


def probe_table() -> str:
    """Predicted by the rates, after a probe, and measured."""
    found = json.loads((RESULTS / "probe-h200.json").read_text())
    lines = ["| model, step | probed at | tokens | measured | by the rates | after a probe |", "|---" * 6 + "|"]
    for row in found["rows"]:
        off = [f"{row[name]:.2f} s ({row[name] / row['measured'] - 1:+.1%})" for name in ("by_rates", "after_probe")]
        step = "whole" if row["plan"]["order"] == "whole-sequence" else "streamed"
        name = f"{row['model']}, {row['plan']['precision']}, {step}"
        cells = (name, f"{row['probed_at']:,}", f"{row['context']:,}", f"{row['measured']:.2f} s", *off)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _machine(found["machine"])])


def _machine(machine: dict) -> str:
    named = ("torch", "transformers", "peft", "bitsandbytes", "liger-kernel")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in named)
    return f"One {machine['card']}, {versions}."


def flash_attention_4_table() -> str:
    """Attention kernels, short steps and rows beside unsloth with the package flash-attn-4, and without it."""
    found = json.loads((RESULTS / "flash-attn-4-h200.json").read_text())
    return "\n\n".join([_kernels(found["kernels"]), _kernel_steps(found), _kernel_rows(found["short"])])


def _kernels(rows: list[dict]) -> str:
    lines = [
        "| heads / KV heads, head size | kernel | block forward | backward | documents, both passes |",
        "|---" * 5 + "|",
    ]
    names = {"cudnn": "cuDNN", "flash": "FlashAttention-2", "flash-attn-4": "FlashAttention-4"}
    for row in sorted(rows, key=lambda row: (row["head_dim"], row["heads"], list(names).index(row["kernel"]))):
        forward, backward = row["block_tflops"]
        documents = "–" if row["documents_graph_ms"] is None else f"{row['documents_graph_ms']:.2f} ms"
        cells = f"{row['heads'].replace('/', ' / ')}, {row['head_dim']}", names[row["kernel"]]
        lines.append(f"| {' | '.join(cells)} | {forward} TFLOP/s | {backward} TFLOP/s | {documents} |")
    return "\n".join(lines)


def _kernel_steps(found: dict) -> str:
    lines = ["| | flash-attn-4 | tokens/s | kernels run | training begins |", "|---" * 5 + "|"]
    for kind, rows in (("step", found["steps"]), ("`engine train`", found["train"])):
        for row in rows:
            if not row["graphs"]:
                continue
            ran = row.get("profile", {}).get("busy_ms")
            begins = row.get("phases", {}).get("training")
            cells = (
                kind,
                "yes" if row["flash_attn_4"] else "no",
                f"{row['tokens_per_second']:,.0f}",
                "–" if ran is None else f"{ran:.0f} of {row['profile']['span_ms']:.0f} ms",
                "–" if begins is None else f"{begins:.1f} s",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _kernel_rows(rows: list[dict]) -> str:
    lines = [
        "| tokens a row | tokens an update | unsloth, activations kept | as engine train runs it | times unsloth |",
        "|---" * 5 + "|",
    ]
    ours = {(row["row"], row["tokens"]): row for row in rows if row["way"] == "as engine train runs it"}
    for rival in rows:
        if rival["way"] == "unsloth, activations kept":
            own = ours[rival["row"], rival["tokens"]]
            speeds = [f"{row['tokens'] / row['seconds']:,.0f} tokens/s" for row in (rival, own)]
            times = f"{rival['seconds'] / own['seconds']:.2f}"
            lines.append(f"| {rival['row']:,} | {rival['tokens']:,} | {' | '.join(speeds)} | {times} |")
    return "\n".join(lines)
