"""Shows the results of benchmarks/packed_gpu.py as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(results: dict[str, Any], names: Iterable[str]) -> str:
    lines = []
    for name in names:
        if (found := results.get(name)) is None:
            continue
        lines.append(f"== {name}, {found['wall']:.0f} s")
        if "error" in found:
            lines += [found["error"], found.get("trace", "")]
            continue
        lines += _large_lines(found) if "floors" in found else []
        for row in found["rows"] if name == "same" else []:
            seconds, loss = row["seconds"]["total"], row["loss"]
            lines.append(f"{row['name']:15} {seconds:7.3f} s  loss {loss!r}  gradient {row['gradient_norm']!r}")
        for row in found["rows"] if name == "front" else []:
            updates = ", ".join(f"{at:.1f}" for at in row["updates"])
            lines.append(f"{row['name']:15} rc {row['rc']}, updates after {updates} s, wall {row['wall']:.0f} s")
            lines += [f"      {at:6.1f} s  {text}" for at, text in row["said"]] + [row.get("stderr", "")][:1]
    return "\n".join(line for line in lines if line)


def _large_lines(found: dict[str, Any]) -> list[str]:
    floor, text = found["floors"], found["text"]
    lines = [f"{found['model']}, {found['context']:,} tokens, built in {found['build_seconds']:.0f} s"]
    for row in found["rows"]:
        said, seconds = row["predicted"], row["seconds"]["total"]
        again = " (the same plan)" if row.get("as_before") else ""
        line = f"{row['cap_gib']} GiB{again}: {seconds:.2f} s (predicted {said['seconds']:.2f}, "
        line += f"{said['seconds'] / seconds - 1:+.1%}; first {row['first_seconds']:.1f})"
        if peak := row.get("gpu_peak_allocated"):
            line += f", GPU {peak / 2**30:.2f} GiB ({said['gpu_allocated'] / peak - 1:+.1%}), reserved "
            line += f"{row['gpu_peak_reserved'] / 2**30:.2f}"
        line += f", host {row['host_grown_bytes'] / 2**30:.1f} GiB (predicted {said['host'] / 2**30:.1f})"
        lines.append(f"{line}, moves {said['moved_bytes'] / 1e9:.0f} GB, plan {row['plan']}")
    total = floor["attention"] + floor["products"]
    lines.append(
        f"floor: attention {floor['attention']:.2f} + products {floor['products']:.2f} = {total:.2f} s; packed bytes "
        f"three times {floor['bytes']:.2f} s at {floor['link_bytes_a_second'] / 1e9:.1f} GB/s"
    )
    lines.append(f"text: first {text['first_token']:.2f} s, a token {text['token']:.3f} s, floor {text['floor']:.3f} s")
    return lines
