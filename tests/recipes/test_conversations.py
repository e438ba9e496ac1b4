"""The recipe on conversations: labels alone count in the loss, and the template goes with the result."""

from __future__ import annotations

import json

import pytest
from recipes.test_fine_tune import start

from engine.config import from_mapping
from engine.errors import EliteError
from engine.protocol.events import EvalCompleted, LogLine, RunFinished, StepCompleted
from engine.recipes.fine_tune import train

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "the sky"}}}


def configure(folder, **data):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What colour has number {i}? {'It is large. ' * (i % 5)}"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "blue " * (200 if i == 7 else 5)},
                {"role": "assistant", "content": f"Number {i} is blue."},
            ]
        }
        for i in range(30)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"datasets": [str(path)], "chat_template": "plain", **data},
            "lora": {"rank": 4},
            "training": {"context": 256, "tokens_per_update": 512, "evaluate_tokens": 128, "max_steps": 2},
            "evaluation": {"at_end": False},
            "output": {"directory": str(folder / "out")},
        }
    )


def test_a_run_on_conversations(tmp_path):
    session = start(configure(tmp_path, overlong="cut-oldest-tool-output"))
    train(session)
    [finished] = session.of(RunFinished)
    assert finished.status == "completed"
    steps = session.of(StepCompleted)
    # Labels are fewer than the tokens of an update.
    assert 0 < steps[0].tokens < 300
    assert all(step.loss > 0 for step in steps)
    assert session.of(EvalCompleted)[0].tokens <= 128
    assert any("had output of tools cut" in line.text for line in session.of(LogLine))
    saved = (session.run.path / "adapter" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "### " in saved
    assert "eos_token" not in saved


def test_longer_conversations_end_a_run_before_its_first_step(tmp_path):
    session = start(configure(tmp_path))
    with pytest.raises(EliteError) as caught:
        train(session)
    assert caught.value.code == "conversations-overlong"
    assert "1 of 30 conversations" in str(caught.value)
