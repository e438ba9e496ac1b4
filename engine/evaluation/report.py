"""report.md: what a run did, in words that a person can keep beside the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import __version__
from engine.errors import one_line

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.data.dataset import DatasetSummary
    from engine.models.catalogue import ModelSpec
    from engine.protocol import RunFinished
    from engine.training.state import Progress


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The figures of a finished run. All were measured, except what is called predicted."""

    config: RunConfig
    finished: RunFinished
    progress: Progress
    spec: ModelSpec
    context: int
    precision: str
    device: str
    adapter_parameters: int
    dataset: DatasetSummary
    held_out_scored: int
    "Held-out tokens scored by each evaluation."
    predicted_gpu_bytes: int | None = None
    predicted_host_bytes: int | None = None
    predicted_step_seconds: float | None = None


def write_report(path: Path, report: RunReport) -> None:
    """Writes the report, replacing an older one in one go.

    Raises:
        OSError: the disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(render_report(report), encoding="utf-8")
    aside.replace(path)


def render_report(report: RunReport) -> str:
    """The report as Markdown."""
    config, finished = report.config, report.finished
    parts = [
        f"# {config.output.model_name}",
        f"{report.spec.name}, fine-tuned with LoRA by elite-tui {__version__} "
        f"on {_repositories([*config.data.repositories, *config.data.datasets])}. The run {_ENDED[finished.status]}.",
        "## Held-out perplexity",
        _perplexities(report),
        "## Data",
        _table(_data_rows(report.dataset)),
        "## Settings",
        _table(_setting_rows(report)),
        "## Cost",
        _table(_cost_rows(report)),
        *_recoveries(report.progress.recoveries),
        "## Using the adapter",
        _usage(report),
    ]
    return "\n\n".join(parts) + "\n"


_ENDED = {"completed": "completed", "stopped": "was stopped before its end"}


def _repositories(paths: list[str]) -> str:
    return ", ".join(_code(path) for path in paths)


def _code(text: str) -> str:
    """Text of unknown origin in backquotes, on one line."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return f"`{shown.replace('`', chr(39))}`"


def _perplexities(report: RunReport) -> str:
    before, after = report.finished.perplexity_before, report.finished.perplexity_after
    rows = [("base model", _number(before)), ("with the adapter", _number(after))]
    text = (
        f"Over {report.held_out_scored:,} tokens of {report.dataset.held_out_files:,} files that training never saw. "
        "Perplexity p means: as uncertain of the next token as a choice among p equally likely ones."
    )
    return _table(rows, ("", "perplexity")) + "\n\n" + text


def _recoveries(recoveries: list[str]) -> list[str]:
    """A section of what went wrong on the way and was dealt with; none where nothing did."""
    if not recoveries:
        return []
    return ["## Recoveries", "\n".join(f"- {one_line(text)}" for text in recoveries)]


def _data_rows(data: DatasetSummary) -> list[tuple[str, str]]:
    files = len(data.files)
    rows = [
        ("files", f"{files - data.held_out_files:,} to train on, {data.held_out_files:,} held out"),
        ("tokens", f"{data.train_tokens:,} to train on, {data.held_out_tokens:,} held out"),
        ("source text", _bytes(data.source_bytes)),
    ]
    languages = [f"{name} ({count:,})" for name, (count, _) in data.collection.by_language().items()]
    if languages:
        rows.append(("languages (files)", ", ".join(languages[:8])))
    if data.skipped:
        rows.append(("left out (files)", ", ".join(f"{reason} ({n:,})" for reason, n in data.skipped.items())))
    return rows


def _setting_rows(report: RunReport) -> list[tuple[str, str]]:
    lora, training = report.config.lora, report.config.training
    targets = ", ".join(lora.targets)
    trained = [
        ("adapter", f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {targets}"),
        ("trained parameters", f"{report.adapter_parameters:,} beside {report.spec.parameters:,} frozen ones"),
    ]
    if training.method == "full":
        trained = [("trained parameters", f"all {report.adapter_parameters:,}")]
    return [
        ("base model", f"{_code(report.spec.hub_id or str(report.spec.path or report.spec.name))}, {report.precision}"),
        ("device", report.device),
        ("context", f"{report.context:,} tokens"),
        *trained,
        ("learning rate", f"{training.learning_rate:g}, warm-up over {training.warmup_fraction:.0%} of the steps"),
        ("seed", str(training.seed)),
    ]


def _cost_rows(report: RunReport) -> list[tuple[str, str]]:
    finished, progress = report.finished, report.progress
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    rows = [
        ("steps", f"{progress.step:,} of {progress.total_steps:,} ({progress.epoch:.2f} epochs)"),
        ("tokens trained on", f"{progress.tokens:,}, {speed:,.0f} a second"),
        ("time", f"{_duration(finished.seconds)} in all, {_duration(progress.seconds)} of it in steps"),
    ]
    if progress.step:
        beside = f" ({report.predicted_step_seconds:,.2f} s predicted)" if report.predicted_step_seconds else ""
        rows.append(("time a step", f"{progress.seconds / progress.step:,.2f} s{beside}"))
    for place, peak, predicted in (
        ("GPU", finished.gpu_peak, report.predicted_gpu_bytes),
        ("host", finished.host_peak, report.predicted_host_bytes),
    ):
        if peak is not None:
            beside = f" ({_bytes(predicted)} predicted)" if predicted is not None else ""
            rows.append((f"{place} memory at most", _bytes(peak) + beside))
    return rows


def _usage(report: RunReport) -> str:
    spec, result = report.spec, report.finished.adapter or "adapter"
    if report.config.training.method == "full":
        kind = "The model is in Hugging Face's format"
        imports = ["from transformers import AutoModelForCausalLM"]
        load = f'model = AutoModelForCausalLM.from_pretrained("{result}", dtype="auto")'
        return _as_code(kind, [*imports, _TOKENIZER, "", load], result)
    if spec.name == "demo":
        imports = [
            "from engine.models.catalogue import find_model",
            "from engine.models.loading import load_model",
            "from engine.models.placement import choose_placement",
        ]
        load = 'base = load_model(find_model("demo"), choose_placement("auto", "auto"))'
    else:
        imports = ["from transformers import AutoModelForCausalLM"]
        load = f'base = AutoModelForCausalLM.from_pretrained({str(spec.path or spec.hub_id)!r}, dtype="auto")'
    attach = f'model = PeftModel.from_pretrained(base, "{result}")'
    lines = [*imports, "from peft import PeftModel", _TOKENIZER, "", load, attach]
    return _as_code("The adapter is in PEFT's format", lines, result)


_TOKENIZER = "from transformers import AutoTokenizer"


def _as_code(kind: str, loading: list[str], result: str) -> str:
    lines = [
        *loading,
        f'tokenizer = AutoTokenizer.from_pretrained("{result}")',
        'ids = tokenizer("def main(", return_tensors="pt").to(model.device)',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))",
    ]
    code = "\n".join(lines)
    return f"{kind}. From this folder:\n\n```python\n{code}\n```"


def _table(rows: list[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.2f}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**29 else f"{count / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
