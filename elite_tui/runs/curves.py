"""Builds a run's charts: series, axes and limits. Widgets only draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elite_tui.format.figures import count_in_words, gibibytes, number_in_words, rate_in_words
from elite_tui.plot.series import Limit, Mark, Series, Values, values
from elite_tui.plot.smoothing import WEIGHTS, Smoother
from elite_tui.runs.history import ROWS, X_AXES, mean_of
from elite_tui.widgets.chart import Picture
from elite_tui.widgets.event_list import SIGNS
from engine.quantities import GIB

if TYPE_CHECKING:
    from elite_tui.runs.open_runs import OpenRun
    from elite_tui.runs.view import RunView

STYLES = ("$primary", "$accent", "$secondary", "$error", "$success", "$foreground")
"""Colours of overlaid runs; letters tell them apart too."""
MARKED = {"checkpoint": "$primary", "warning": "$warning", "recovery": "$warning"}
"Events with a mark on the x axis, and its colour."


@dataclass(frozen=True, kw_only=True)
class ChartKind:
    """One chart of a run."""

    name: str
    title: str
    key: str


CHARTS = (
    ChartKind(name="loss", title="Loss", key="1"),
    ChartKind(name="rate", title="Rate", key="2"),
    ChartKind(name="gradient", title="Gradient", key="3"),
    ChartKind(name="speed", title="Speed", key="4"),
    ChartKind(name="gpu", title="GPU", key="5"),
    ChartKind(name="ram", title="RAM", key="6"),
)


@dataclass(frozen=True)
class Look:
    """The user's chart settings, shared by all charts of a screen."""

    x_kind: str = X_AXES[0]
    log: bool = False
    smoothing: int = 0
    "Index of WEIGHTS."

    @property
    def weight(self) -> float:
        """Weight of the past in each smoothed point."""
        return WEIGHTS[self.smoothing]

    @property
    def next_axis(self) -> str:
        """The x axis after the current one."""
        return X_AXES[(X_AXES.index(self.x_kind) + 1) % len(X_AXES)]


class RunCurves:
    """Builds one run's charts and caches the smoothed curves."""

    def __init__(self) -> None:
        self._smoothers: dict[str, Smoother] = {}

    def picture(self, kind: str, run: OpenRun, look: Look) -> Picture:
        """Builds the chart of a kind, one of CHARTS."""
        make = {
            "loss": self._loss,
            "rate": self._rate,
            "gradient": self._gradient,
            "speed": self._speed,
            "gpu": self._gpu,
            "ram": self._ram,
        }[kind]
        return make(run, look)

    def _column(self, run: RunView, name: str) -> Values:
        return values(run.history.steps[name])

    def _curve(self, run: RunView, column: str, name: str, look: Look, style: str = "$primary") -> list[Series]:
        """Returns the values as a series; with smoothing, faintly beneath the smooth line."""
        x, y = self._column(run, look.x_kind), self._column(run, column)
        if not look.weight:
            return [Series(name=name, x=x, y=y, style=style)]
        smooth = _smoothed(run, column, look, self._smoothers.setdefault(column, Smoother()))
        return [
            Series(name=name, x=x, y=y, style="$faint", quiet=True),
            Series(name=f"{name} ~{look.weight:g}", x=x, y=smooth, style=style),
        ]

    def _loss(self, run: OpenRun, look: Look) -> Picture:
        view = run.view
        held_out = view.history.held_out
        series = self._curve(view, "loss", "train", look)
        scored = values(held_out["loss"])
        series.append(
            Series(
                name="held-out", x=values(held_out[look.x_kind]), y=scored, style="$accent", marker=SIGNS["evaluation"]
            )
        )
        return Picture(
            title="Loss",
            unit="nats a token",
            series=series,
            marks=marks(view, look.x_kind),
            x_kind=look.x_kind,
            log=look.log,
            empty="the first value comes with the first step",
        )

    def _rate(self, run: OpenRun, look: Look) -> Picture:
        x, y = self._column(run.view, look.x_kind), self._column(run.view, "lr")
        series = [Series(name="now", x=x, y=y, style="$secondary")]
        return Picture(title="Learning rate", series=series, x_kind=look.x_kind, log=look.log, figure=rate_in_words)

    def _gradient(self, run: OpenRun, look: Look) -> Picture:
        series = self._curve(run.view, "grad_norm", "norm", look, "$secondary")
        return Picture(title="Gradient norm", series=series, x_kind=look.x_kind, log=look.log)

    def _speed(self, run: OpenRun, look: Look) -> Picture:
        series = self._curve(run.view, "speed", "now", look, "$secondary")
        return Picture(
            title="Speed", unit="tokens/s", series=series, x_kind=look.x_kind, log=look.log, figure=count_in_words
        )

    def _gpu(self, run: OpenRun, look: Look) -> Picture:
        view = run.view
        step = view.step
        if step is not None and step.gpu_peak is None and step.gpu_allocated is None:
            return Picture(title="GPU", empty=f"this run trains on {_device(view)}")
        return Picture(
            title="GPU",
            unit="GiB of memory",
            series=[
                Series(
                    name="reserved",
                    letter="r",
                    x=self._column(view, look.x_kind),
                    y=self._column(view, "gpu_reserved") / GIB,
                    style="$secondary",
                ),
                Series(
                    name="peak",
                    letter="p",
                    x=self._column(view, look.x_kind),
                    y=self._column(view, "gpu_peak") / GIB,
                ),
            ],
            limits=_plan_limit(planned_gpu(run)),
            x_kind=look.x_kind,
            log=look.log,
            figure=gibibytes,
        )

    def _ram(self, run: OpenRun, look: Look) -> Picture:
        y = self._column(run.view, "host_used") / GIB
        return Picture(
            title="RAM",
            unit="GiB of memory",
            series=[Series(name="used", x=self._column(run.view, look.x_kind), y=y)],
            limits=_plan_limit(planned_host(run)),
            x_kind=look.x_kind,
            log=look.log,
            figure=gibibytes,
        )


def _smoothed(view: RunView, column: str, look: Look, smoother: Smoother) -> Values:
    steps = view.history.steps
    return smoother(values(steps[mean_of(column)]), look.weight, values(steps[ROWS]))


def planned_gpu(run: OpenRun) -> float | None:
    """Returns the planned GPU bytes."""
    started = run.view.started
    if started is not None and started.planned_gpu_bytes is not None:
        return started.planned_gpu_bytes
    return run.planned.gpu_bytes if run.planned is not None else None


def planned_host(run: OpenRun) -> float | None:
    """Returns the planned bytes of RAM."""
    started = run.view.started
    if started is not None and started.planned_host_bytes is not None:
        return started.planned_host_bytes
    return run.planned.host_bytes if run.planned is not None else None


def _plan_limit(planned: float | None) -> list[Limit]:
    return [Limit(name="plan", value=planned / GIB)] if planned else []


def _device(view: RunView) -> str:
    return view.started.device if view.started is not None else "the CPU"


def marks(view: RunView, x_kind: str) -> list[Mark]:
    """Returns marks for checkpoints, warnings and recoveries along an x axis."""
    steps = values(view.history.steps["step"])
    if not steps.size:
        return []
    places = values(view.history.steps[x_kind])
    found = []
    for one in view.events:
        if one.kind in MARKED:
            index = min(int(np.searchsorted(steps, one.step)), steps.size - 1)
            found.append(Mark(x=float(places[index]), sign=SIGNS[one.kind], style=MARKED[one.kind]))
    # Of two at one place, the more severe one is drawn last.
    return sorted(found, key=lambda mark: mark.style == "$warning")


def overlay(views: Sequence[tuple[str, RunView]], look: Look) -> Picture:
    """Overlays the losses of several runs in one chart, told apart by letters."""
    series = []
    for index, (letter, view) in enumerate(views):
        x = values(view.history.steps[look.x_kind])
        smooth = _smoothed(view, "loss", look, Smoother()) if look.weight else values(view.history.steps["loss"])
        series.append(Series(name="", letter=letter, x=x, y=smooth, style=STYLES[index % len(STYLES)]))
    return Picture(
        title="Training loss",
        unit="nats a token",
        series=series,
        x_kind=look.x_kind,
        log=look.log,
        empty="none of these runs has completed a step",
        figure=number_in_words,
    )
