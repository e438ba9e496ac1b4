"""engine plan and engine profile, through the command line."""

from __future__ import annotations

import json

import pytest

from engine.cli import main

PLAN_KEYS = {
    *("tier", "context", "sees", "fits", "reason", "gpu_peak_bytes", "host_peak_bytes", "disk_bytes"),
    *("step_seconds", "steps_per_epoch", "plan", "parts"),
}


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_json_has_the_promised_shape(capsys):
    arguments = ["plan", "--hardware", "rtx-2060-super", "--model", "qwen2.5-coder-1.5b", "--ram", "64", "--json"]
    status, out, _ = run(capsys, *arguments)
    document = json.loads(out)
    assert status == 0
    assert {"hardware", "model", "repo_tokens", "recommended", "tiers"} <= document.keys()
    assert (document["recommended"], document["recommended_context"], document["ceiling"]) == (4, 32_768, 8)
    assert "trained on 32K tokens" in document["recommended_because"]
    assert document["repo_tokens"] is None
    assert len(document["tiers"]) == 11
    for tier in document["tiers"]:
        assert tier.keys() >= PLAN_KEYS
        assert {"order", "weights"} <= tier["plan"].keys()
        assert all(part.keys() == {"name", "where", "bytes", "formula"} for part in tier["parts"])


def test_the_table_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(capsys, "plan", "--hardware", "rtx-4090", "--model", "qwen2.5-coder-7b", "--max-context")
    assert status == 0
    assert "Recommended: tier" in out
    assert "the largest context that fits" in out
    assert "Predicted, not measured" in out


def test_one_tier_shows_its_sum(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, "plan", "--hardware", "rtx-4090", "--model", "qwen2.5-coder-1.5b", "--tier", "9")
    assert "tokens × 2 × 2 heads ×" in out
    assert "that can be used" in out


@pytest.mark.parametrize(
    ("options", "first"),
    [(("--hours", "8"), "From tier 5 on"), (("--hours", "8", "--tier", "6"), "From tier 7 on"), ((), "From tier 5 on")],
)
def test_what_is_beyond_the_trained_length_is_said_to_need_a_tier(capsys, monkeypatch, tmp_path, options, first):
    """qwen2.5-coder-1.5b was trained with 32,768 tokens, which is tier 4."""
    for number in range(40):
        (tmp_path / f"module_{number}.py").write_text(f"value_{number} = {number}\n" * 3000)
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["plan", "--hardware", "h200", "--model", "qwen2.5-coder-1.5b", "--repo", str(tmp_path), *options]
    out = run(capsys, *arguments)[1]
    assert f"{first} beyond the trained length: taken where --tier asks for it" in out
    assert ("128K" in out.partition("Schedule")[2]) is ("6" in options)
    assert "tier 5 and above: qwen2.5-coder-1.5b was trained on 32,768 tokens" in out.partition("Schedule")[0]


def test_the_recommended_tier_ends_at_the_trained_length_and_the_highest_is_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    out = run(capsys, "plan", "--hardware", "rtx-4090", "--model", "qwen2.5-coder-1.5b")[1]
    assert "Recommended: tier 4, whose sum `--tier 4` shows: qwen2.5-coder-1.5b was trained on 32K tokens" in out
    assert "`--tier max` takes tier 10, limited so that a window takes up to 10h." in out  # tier 11 fits too
    assert "repository" not in out
    out = run(capsys, "plan", "--hardware", "rtx-4090", "--model", "phi-2")[1]
    assert "Recommended: windows of 2,048 tokens: phi-2 was trained on 2K tokens" in out
    assert "`--tier max` takes tier" in out


@pytest.mark.parametrize(
    ("options", "files", "said"),
    [
        (("--ram", "16", "--disk", "1"), 0, "the highest that fits"),
        ((), 0, "limited so that a window takes up to 10h"),  # tier 11 fits
        ((), 20, "the lowest that holds the whole repository"),
    ],
)
def test_why_the_highest_tier_is_no_higher_is_what_the_table_shows(capsys, monkeypatch, tmp_path, options, files, said):
    monkeypatch.setenv("COLUMNS", "400")
    arguments = ["plan", "--hardware", "rtx-4090", "--model", "qwen2.5-coder-1.5b", *options]
    for number in range(files):
        (tmp_path / f"module_{number}.py").write_text(f"value_{number} = {number}\n" * 600)
    if files:
        arguments += ["--repo", str(tmp_path)]
    out = run(capsys, *arguments)[1]
    rows = json.loads(run(capsys, *arguments, "--json")[1])
    ceiling = rows["ceiling"]
    assert f"`--tier max` takes tier {ceiling}, {said}." in out
    at, above = rows["tiers"][ceiling - 1], rows["tiers"][ceiling:]
    holds = rows["repo_tokens"] is not None and at["context"] >= rows["repo_tokens"]
    assert holds is ("repository" in said)
    assert any(row["fits"] for row in above) is (said != "the highest that fits")


def test_a_tier_that_does_not_fit_ends_with_3(capsys):
    arguments = ["plan", "--hardware", "rtx-3050-laptop", "--model", "qwen2.5-coder-14b", "--disk", "0", "--ram", "8"]
    status, out, _ = run(capsys, *arguments, "--tier", "11")
    assert status == 3
    assert "does not fit" in out


def test_a_choice_of_the_streamed_step_is_taken_from_the_planner(capsys):
    arguments = ["plan", "--hardware", "rtx-4090", "--stream", "hidden_home=disk", "--stream", "stash=false", "--json"]
    tiers = json.loads(run(capsys, *arguments)[1])["tiers"]
    assert {(tier["plan"]["hidden_home"], tier["plan"]["stash"]) for tier in tiers} == {("disk", False)}


def test_a_repository_limits_the_recommendation(capsys, tmp_path):
    for number in range(20):
        (tmp_path / f"module_{number}.py").write_text(f"value_{number} = {number}\n" * 60)
    arguments = ["plan", "--hardware", "rtx-4090", "--repo", str(tmp_path), "--json"]
    document = json.loads(run(capsys, *arguments)[1])
    assert document["repo_tokens"] > 1000
    assert document["recommended"] < 9


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--hardware", "rtx-9999"], "hardware-unknown"),
        (["--model", "nosuch"], "model-unknown"),
        (["--repo", "/nowhere/at/all"], "repository-missing"),
        (["--hardware", "t4", "--precision", "bf16"], "precision-unavailable"),
        (["--stream", "hidden_hom=disk"], "config-invalid"),
        (["--stream", "tile"], "override-malformed"),
        (["--hardware", "t4", "--stream", "attention=cudnn"], "config-invalid"),
    ],
)
def test_bad_input_is_one_line(arguments, code, capsys):
    status, out, err = run(capsys, "plan", *arguments, "--json")
    assert status in (2, 3)
    assert json.loads(out)["error"] == code
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--ram", "-1"], ["--vram", "nan"], ["--tier", "12"], ["--rank", "0"]])
def test_bad_numbers_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    assert caught.value.code == 2


def test_profile_reads_what_needs_no_measuring(capsys):
    status, out, _ = run(capsys, "profile", "--quick", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["cpu_cores"] >= 1
    assert document["libraries"]["torch"]["enables"] == "training"
    status, out, _ = run(capsys, "profile", "--quick")
    assert status == 0
    assert "CPU" in out
