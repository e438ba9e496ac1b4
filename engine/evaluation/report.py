"""Writes report.md: a run's results in words and charts, to forward or to keep beside the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine import __version__
from engine.config import model_name
from engine.data.fim import share_in_words
from engine.errors import one_line
from engine.evaluation import report_sections
from engine.evaluation.charts import charts_of
from engine.evaluation.curve import RunCurve
from engine.evaluation.markdown import code, table
from engine.evaluation.projection import Projection, Score, project, score_in_hindsight
from engine.evaluation.words import number, too_few_updates
from engine.quantities import counted, format_bytes, format_seconds, format_timing
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.data.dataset import DatasetSummary
    from engine.evaluation.promise import Comparison
    from engine.evaluation.result import Evaluation
    from engine.models.catalogue import ModelSpec
    from engine.protocol.events import RunFinished
    from engine.steps.whole_step import PreferenceFigures
    from engine.training.state import Progress

CHARTS = "charts"
"""Folder of the charts, beside the report."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Figures of a finished run. All are measured, except those called predicted or projected."""

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
    "Held-out tokens scored in each evaluation."
    learning_rate: float | None = None
    "Peak rate of the run's plan; None for the configuration's."
    predicted_gpu_bytes: int | None = None
    predicted_host_bytes: int | None = None
    promise: Comparison | None = None
    "Predicted and measured times, and the predicted loss."
    curve: RunCurve = field(default_factory=RunCurve)
    past: tuple[float, ...] = ()
    "See `engine.evaluation.curve.past_ratios`."
    evaluation: Evaluation | None = None
    preferences: PreferenceFigures | None = None
    "Of the held-out pairs after training, with dpo."

    @property
    def scores(self) -> list[Score]:
        """Earlier projections compared with the result, for a run that completed."""
        done = self.finished.status == "completed" and self.progress.step == self.progress.total_steps
        return score_in_hindsight(self.curve.held_out, self.past) if done else []

    @property
    def ahead(self) -> Projection | None:
        """Projection for a run that was stopped before its end."""
        if self.finished.status == "completed" or self.curve.total_tokens is None:
            return None
        return project(self.curve.held_out, self.curve.total_tokens, self.past)


def write_report(path: Path, report: RunReport) -> None:
    """Writes the report and its charts, each by atomic replacement.

    Raises:
        OSError: the disk is full or not writable.
    """
    pictures = dict(charts_of(report.curve, report.scores, report.evaluation))
    folder = path.parent / CHARTS
    if pictures:
        folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        replace_text(folder / f"{name}.svg", picture)
    replace_text(path, render_report(report, frozenset(pictures)))


def render_report(report: RunReport, pictures: frozenset[str] = frozenset()) -> str:
    """Renders the report as Markdown; `pictures` are the charts that exist beside it."""
    config, finished = report.config, report.finished
    sources = ", ".join(code(path) for path in [*config.data.repositories, *config.data.datasets])
    parts = [
        f"# {model_name(config)}",
        f"{report.spec.name}, fine-tuned by elite-tui {__version__} on {sources}. The run {_ENDED[finished.status]}.",
        *_quality(report, pictures),
        *_preferences(report.preferences),
        *(["## Training", "![losses](charts/loss.svg)"] if "loss" in pictures else []),
        *report_sections.projections(report.scores, report.ahead),
        "## Predicted and measured",
        _cost(report),
        "## Data",
        table(_data_rows(report.dataset)),
        "## Settings",
        table(_setting_rows(report)),
        *_recoveries(report.progress.recoveries),
        *([] if report.evaluation is None else report_sections.excerpts(report.evaluation.excerpts)),
        *([] if report.evaluation is None else report_sections.samples(report.evaluation.samples)),
        "## Using the result",
        _usage(report),
    ]
    return "\n\n".join(parts) + "\n"


_ENDED = {"completed": "completed", "stopped": "was stopped before its end"}


def _quality(report: RunReport, pictures: frozenset[str]) -> Iterator[str]:
    if few := too_few_updates(report.progress.step):
        yield f"{few.capitalize()}."
    if report.evaluation is not None:
        yield report_sections.verdict(report.evaluation)
        yield from report_sections.quality(report.evaluation, tuple(pictures))
        yield from report_sections.guesses(report.evaluation)
        yield from report_sections.functions(report.evaluation, tuple(pictures))
        return
    before, after = report.finished.perplexity_before, report.finished.perplexity_after
    yield "## Held-out perplexity"
    yield table([("base model", _perplexity(before)), ("tuned", _perplexity(after))], ("", "perplexity"))
    yield (
        f"Over {report.held_out_scored:,} tokens of {counted(report.dataset.held_out_files, 'file')} "
        "that training never saw. "
        "Perplexity p means: as uncertain of the next token as a choice among p equally likely ones. "
        "`engine evaluate` adds intervals, languages, positions and completed functions."
    )


def _preferences(figures: PreferenceFigures | None) -> Iterator[str]:
    if figures is not None:
        yield "## Held-out preferences"
        rows = [
            ("loss", f"{figures.loss:.4f} (ln 2 = 0.6931 is no preference)"),
            ("reward margin", f"{figures.margin:.4f}"),
            ("chosen answer preferred", f"{figures.accuracy:.1%}"),
        ]
        yield table(rows, ("", "tuned"))


def _perplexity(value: float | None) -> str:
    return number(value) if value is None else f"{value:,.2f}"


def _recoveries(recoveries: list[str]) -> list[str]:
    """Renders a section on the run's recoveries; empty where there were none."""
    if not recoveries:
        return []
    return ["## Recoveries", "\n".join(f"- {one_line(text)}" for text in recoveries)]


def _data_rows(data: DatasetSummary) -> list[tuple[str, str]]:
    files = len(data.files)
    rows = [
        ("files", f"{files - data.held_out_files:,} to train on, {data.held_out_files:,} held out"),
        ("tokens", f"{data.train_tokens:,} to train on, {data.held_out_tokens:,} held out"),
        ("source text", format_bytes(data.source_bytes)),
    ]
    languages = [f"{name} ({count:,})" for name, (count, _) in data.collection.by_language().items()]
    if languages:
        rows.append(("languages (files)", ", ".join(languages[:8])))
    if (rearranged := share_in_words(data.fim, data.fim_files)) is not None:
        rows.append(("rearranged", rearranged))
    if data.skipped:
        rows.append(("left out (files)", ", ".join(f"{reason} ({n:,})" for reason, n in data.skipped.items())))
    return rows


def _setting_rows(report: RunReport) -> list[tuple[str, str]]:
    lora, training = report.config.lora, report.config.training
    targets = ", ".join(lora.targets)
    rate = training.rate_in_words(report.learning_rate)
    trained = [
        ("adapter", f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {targets}"),
        ("trained parameters", f"{report.adapter_parameters:,} beside {report.spec.parameters:,} frozen ones"),
    ]
    if training.method == "full":
        trained = [("trained parameters", f"all {report.adapter_parameters:,}")]
    return [
        ("base model", f"{code(report.spec.hub_id or str(report.spec.path or report.spec.name))}, {report.precision}"),
        ("device", report.device),
        ("context", f"{report.context:,} tokens"),
        *trained,
        ("learning rate", f"{rate}, warm-up over {training.warmup_fraction:.0%} of the steps"),
        ("seed", str(training.seed)),
    ]


def _cost(report: RunReport) -> str:
    finished, progress = report.finished, report.progress
    compared = []
    if progress.step:
        predicted = None if report.promise is None else report.promise.promise.step_seconds
        compared.append(_compared("time a step", predicted, progress.seconds / progress.step, format_timing))
    compared += _promised(report)
    for place, predicted, peak in (
        ("GPU", report.predicted_gpu_bytes, finished.gpu_peak),
        ("host", report.predicted_host_bytes, finished.host_peak),
    ):
        if peak is not None:
            compared.append(_compared(f"{place} memory at most", predicted, peak, format_bytes))
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    others = [
        ("steps", f"{progress.step:,} of {progress.total_steps:,} ({progress.epoch:.2f} epochs)"),
        ("tokens trained on", f"{progress.tokens:,}, {speed:,.0f} a second"),
        ("time", f"{format_seconds(finished.seconds)} in all, {format_seconds(progress.seconds)} of it in steps"),
    ]
    head = ("", "predicted", "measured", "difference")
    return "\n\n".join([*([table(compared, head, figures=True)] if compared else []), table(others)])


def _promised(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    """Compares times and loss of a run with its promise, as far as the run came to its end."""
    promise = report.promise
    if promise is None or report.finished.status != "completed":
        return
    if promise.timeline is not None:
        yield _compared("time of the run", promise.promise.seconds, promise.timeline.seconds, format_seconds)
        for kept in promise.parts:
            yield _compared(f"— {kept.name}", kept.predicted, kept.measured, format_timing)
    if len(report.curve.held_out) > 1:
        yield _compared("held-out loss", promise.loss, report.curve.held_out[-1][1], lambda loss: f"{loss:.3f}")


def _compared(
    name: str, predicted: float | None, measured: float, words: Callable[[float], str]
) -> tuple[str, str, str, str]:
    if not predicted:
        return name, "n/a", words(measured), ""
    return name, words(predicted), words(measured), f"{measured / predicted - 1:+.0%}"


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
    text = "\n".join(lines)
    return f"{kind}. From this folder:\n\n```python\n{text}\n```"
