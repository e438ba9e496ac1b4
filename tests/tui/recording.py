"""Records the run that stands in for a live engine: fixtures/demo-run/events.jsonl.

`python -m tests.tui.recording` writes the file again. Its times, ids and figures are fixed.
"""

from __future__ import annotations

import math
from pathlib import Path

from engine.protocol.events import (
    CheckpointSaved,
    CommandAcked,
    EvalCompleted,
    Event,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)
from engine.protocol.wire import Envelope, decode_event, encode_event

RUN_ID = "20260102-100000-shop-backend-3f2a"
FOLDER = Path(__file__).parent / "fixtures" / RUN_ID
START = 1_767_348_000.0
"2026-01-02 10:00:00 UTC"
STEPS = 60

HOSTILE = "reading [/bold] src/[link=x].py \x1b[31m and [red]more"
"A log line that a parser would take for markup, a link and an escape code."


def record() -> list[Envelope]:
    """Returns every event of the run in order."""
    events: list[tuple[float, Event]] = [
        (0.0, PhaseChanged(phase="data")),
        (0.4, LogLine(level="info", text="214 files, 521,904 tokens, 12 held out")),
        (0.5, LogLine(level="info", text=HOSTILE)),
        (1.0, PhaseChanged(phase="model", detail="demo")),
        (
            2.0,
            RunStarted(
                model="demo",
                context=4096,
                total_steps=STEPS,
                device="cpu",
                pid=4242,
                engine_version="0.1.0",
                planned_host_bytes=2_100_000_000,
            ),
        ),
        (2.1, PhaseChanged(phase="baseline")),
        (6.0, EvalCompleted(step=0, loss=4.1, perplexity=60.34, tokens=65_536, seconds=3.9)),
        (6.1, PhaseChanged(phase="training")),
    ]
    for step in range(1, STEPS + 1):
        time = 6.1 + 2.0 * step
        events += [
            (time - 1.5, StepProgress(step=step, stage="forward", done=3, total=8, layer=3, tile=0)),
            (time - 0.5, StepProgress(step=step, stage="backward", done=5, total=8, layer=5, tile=0)),
            (time, _completed(step)),
        ]
        if step % 20 == 0:
            loss = _loss(step) + 0.12
            events += [
                (time + 0.1, EvalCompleted(step=step, loss=loss, perplexity=math.exp(loss), tokens=65_536)),
                (time + 0.2, CheckpointSaved(step=step, path=f"checkpoints/step-{step:06}", bytes=2_400_000)),
            ]
        if step == 15:
            events.append((time, WarningRaised(code="slow-disk", text="the disk is slow", hint="use another folder")))
        if step == 25:
            events.append((time, RecoveryTaken(what="the step was repeated", why="its loss was not finite")))
        if step == 30:
            events.append((time, CommandAcked(command_id="c1", command="SaveNow", accepted=True, text="saved")))
    end = 6.1 + 2.0 * STEPS
    events += [
        (end + 1, PhaseChanged(phase="saving")),
        (end + 2, PhaseChanged(phase="finished")),
        (
            end + 2.1,
            RunFinished(
                status="completed",
                steps=STEPS,
                seconds=end + 2.1,
                adapter="adapter",
                perplexity_before=60.34,
                perplexity_after=math.exp(_loss(STEPS) + 0.12),
                tokens=STEPS * 8192,
                host_peak=1_950_000_000,
            ),
        ),
    ]
    return [
        Envelope(run=RUN_ID, seq=number, time=START + time, event=event) for number, (time, event) in enumerate(events)
    ]


def _loss(step: int) -> float:
    return 1.6 + 2.5 * math.exp(-step / 18) + 0.08 * math.sin(step * 1.7)


def _completed(step: int) -> StepCompleted:
    return StepCompleted(
        step=step,
        total_steps=STEPS,
        epoch=step / STEPS,
        loss=None if step == 25 else _loss(step),
        lr=2e-4 * min(1.0, step / 3) * (1 - step / STEPS),
        grad_norm=0.8 + 0.2 * math.sin(step),
        tokens=8192,
        tokens_per_second=4096.0 + 10 * step,
        seconds=2.0,
        host_used=1_900_000_000,
        eta_seconds=2.0 * (STEPS - step),
    )


def gpu_run(run_id: str, steps: int, *, seed: int = 0, ended: bool = True) -> list[Envelope]:
    """Makes a GPU run with a noisy loss; unless it has ended, it is inside its next step."""

    def noise(step: int, part: int) -> float:
        """Returns a value from −1 to 1, the same on every machine."""
        wild = math.sin(step * 12.9898 + part * 78.233 + seed * 37.719) * 43758.5453
        return 2 * (wild - math.floor(wild)) - 1

    model = "qwen2.5-coder-1.5b"
    started = RunStarted(
        model=model,
        context=131_072,
        total_steps=steps + (0 if ended else 80),
        device="NVIDIA GeForce RTX 3060",
        planned_gpu_bytes=7_800_000_000,
        planned_host_bytes=12_100_000_000,
    )
    events: list[tuple[float, Event]] = [
        (0.0, PhaseChanged(phase="data")),
        (1.0, started),
        (2.0, EvalCompleted(step=0, loss=1.42, perplexity=math.exp(1.42), tokens=65_536)),
        (3.0, PhaseChanged(phase="training", detail=f"{steps} steps of 131,072 tokens")),
    ]
    loss = 1.42
    for step in range(1, steps + 1):
        time = 3.0 + 20.0 * step
        loss = 0.9 + 0.5 * math.exp(-step / (60 + 20 * seed)) + 0.06 * noise(step, 1)
        events.append(
            (
                time,
                StepCompleted(
                    step=step,
                    total_steps=started.total_steps,
                    epoch=round(step / started.total_steps, 3),
                    loss=loss,
                    lr=2e-4 * min(1.0, step / 20) * (1 - 0.9 * step / started.total_steps),
                    grad_norm=1 + 0.3 * noise(step, 2),
                    tokens=131_072,
                    tokens_per_second=6500 + 90 * noise(step, 3),
                    seconds=20.0,
                    gpu_allocated=6_200_000_000,
                    gpu_reserved=7_400_000_000,
                    gpu_peak=7_000_000_000 + int(1e8 * noise(step, 4)),
                    host_used=11_000_000_000 + 2_000_000 * step,
                ),
            )
        )
        if step % 50 == 0:
            held_out = loss + 0.05
            events += [
                (time, EvalCompleted(step=step, loss=held_out, perplexity=math.exp(held_out), tokens=65_536)),
                (time, CheckpointSaved(step=step, path=f"checkpoints/step-{step:06}", bytes=36_000_000)),
            ]
        if step == 70:
            hint = "nvidia-smi -pl raises the limit, where the power supply allows"
            events.append(
                (time, WarningRaised(code="power", text="the GPU is held down by its power limit", hint=hint))
            )
        if step == 110:
            why = "out of GPU memory in backward of layer 12"
            events.append((time, RecoveryTaken(what="the tile was halved to 1,024 tokens", why=why)))
    end = 3.0 + 20.0 * steps
    if ended:
        finished = RunFinished(
            status="completed",
            steps=steps,
            seconds=end,
            adapter="adapter",
            perplexity_before=math.exp(1.42),
            perplexity_after=math.exp(loss + 0.05),
            tokens=steps * 131_072,
            gpu_peak=7_100_000_000,
            host_peak=11_300_000_000,
        )
        events += [(end + 1, PhaseChanged(phase="saving")), (end + 2, finished)]
    else:
        events += [
            (end + 2, StepProgress(step=steps + 1, stage="forward", done=448, total=448, layer=27, tile=15)),
            (end + 3, StepProgress(step=steps + 1, stage="loss", done=16, total=16)),
            (end + 12, StepProgress(step=steps + 1, stage="backward", done=212, total=448, layer=14, tile=9)),
        ]
    return [
        Envelope(run=run_id, seq=number, time=START + time, event=event) for number, (time, event) in enumerate(events)
    ]


def recorded(until_step: int | None = None) -> list[Envelope]:
    """Reads the recorded events, up to the progress that follows a step; all of them for None."""
    envelopes = [decode_event(line) for line in (FOLDER / "events.jsonl").read_bytes().splitlines()]
    if until_step is None:
        return envelopes
    last = max(
        index
        for index, envelope in enumerate(envelopes)
        if isinstance(envelope.event, StepProgress) and envelope.event.step == until_step + 1
    )
    return envelopes[: last + 1]


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = "".join(encode_event(envelope) + "\n" for envelope in record())
    (FOLDER / "events.jsonl").write_text(text, encoding="utf-8")
