"""Every row of the registry of families does what it says, and what it denies is refused before anything is read."""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
import json
import shutil

import pytest
import torch
from support.exports import finished_run
from support.families import ROWS, VARIANTS, save_family, tiny_config
from support.session import RecordingSession
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine import cli
from engine.config import LoraSection, from_mapping
from engine.data.windows import Window
from engine.errors import EliteError
from engine.generation.forward import LibraryForward, open_forward
from engine.generation.sampling import Sampling, generate
from engine.models import families
from engine.models.adapter import attach_adapter, trainable
from engine.models.catalogue import catalogue, find_model
from engine.models.expert_stacks import stacks_of
from engine.models.loading import load_model
from engine.models.placement import choose_placement
from engine.plan.request import streaming_refusal
from engine.plan.stream_plan import StreamPlan
from engine.protocol.events import RunFinished
from engine.recipes.fine_tune import train
from engine.runs.run_directory import RunDirectory
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.step import StreamedStep

CPU = torch.device("cpu")
TRAINED = [family for family in ROWS if families.refusal(family, "planned") is None]
DENIED = [family for family in ROWS if family not in TRAINED]


def test_every_row_is_tested():
    listed = {name for name, family in families.FAMILIES.items() if not family.proof}
    assert set(ROWS) == listed
    assert not DENIED
    for ability in ("planned", "whole", "streamed", "generated", "exported"):
        assert set(families.supporting(ability)) & listed == set(TRAINED)


@pytest.mark.parametrize(("family", "number"), [v for v in VARIANTS if v[0] in TRAINED])
def test_the_plan_counts_the_parameters_of_the_model_that_loads(family, number, tmp_path):
    path = save_family(tmp_path / "model", family, number)
    spec = find_model(str(path))
    plain = AutoModelForCausalLM.from_pretrained(path)
    assert spec.parameters == sum(parameter.numel() for parameter in plain.parameters())
    decoder = plain.get_decoder()
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder.layers]
    assert (spec.decoder_parameters, spec.layer_parameters) == (sum(layers), max(layers))
    linears = [module for module in decoder.layers.modules() if isinstance(module, torch.nn.Linear)]
    stacks = [stack for module in decoder.layers.modules() for stack in stacks_of(module).values()]
    packed = [*(p for module in linears for p in module.parameters()), *stacks]
    assert spec.quantised_parameters == sum(p.numel() for p in packed)
    tensors = [p.numel() for p in decoder.layers.parameters()]
    assert max(tensors) <= spec.largest_tensor <= max(tensors) + spec.intermediate_size
    loaded = load_model(spec, choose_placement("cpu", "fp32"))
    assert spec.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    some = ["o_proj"] if spec.linears[-1].name == "o_proj" else [spec.linears[0].name, spec.linears[-1].name]
    more = [["all-linear", "experts"], ["experts"]] if stacks else []
    for targets in (["all-linear"], some if spec.adapts_mlp else ["q_proj"], *more):
        adapted = attach_adapter(
            load_model(spec, choose_placement("cpu", "fp32")), LoraSection(rank=4, targets=targets), 0
        )
        assert spec.lora_parameters(4, targets) == sum(p.numel() for p in trainable(adapted).values())
    assert spec.adapted_width == spec.lora_parameters(1)


@pytest.mark.parametrize(("family", "number"), [v for v in VARIANTS if v[0] in TRAINED])
def test_both_ways_to_compute_a_step_give_the_gradient_of_plain_transformers(family, number, tmp_path):
    """The reference: transformers' model from the same folder, eager attention, one document at a time, fp32."""
    path = save_family(tmp_path / "model", family, number)
    starts, ids = (0, 5, 6, 48), torch.randint(3, 600, (90,), generator=torch.Generator().manual_seed(1))
    plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()  # without its dropout
    borders, wanted = [*starts, len(ids)], 0.0
    targets = len(ids) - len(starts)
    for start, stop in itertools.pairwise(borders):
        logits = plain(input_ids=ids[None, start:stop], use_cache=False).logits[0, :-1]
        loss = functional.cross_entropy(logits, ids[start + 1 : stop], reduction="sum")
        (loss / targets).backward()
        wanted += float(loss.detach())
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    loaded = load_model(find_model(str(path)), choose_placement("cpu", "fp32")).requires_grad_()

    def check(loss_sum, gradients):
        assert loss_sum == pytest.approx(wanted, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            error = (gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-20)
            assert error < 3e-5, name

    whole = WholeSequenceStep(loaded, recompute=False)
    result = whole.run([Window(ids.numpy(), starts)], 1.0 / targets, _Silent())
    check(result.loss_sum, {n: p.grad.clone() for n, p in loaded.named_parameters() if p.grad is not None})
    whole.close()
    loaded.zero_grad()
    with StreamedStep(loaded.train(), StreamPlan(tile=16, key_block=32, loss_piece=7), device=CPU) as step:
        outcome = step.run(ids, document_starts=starts)
        sums = step.wide_gradients.sums
        found = {name: sums.get(p, p.grad) for name, p in loaded.named_parameters()}
    check(outcome.loss_sum, {name: gradient for name, gradient in found.items() if gradient is not None})


@pytest.mark.parametrize("family", TRAINED)
def test_text_is_what_transformers_writes(family, tmp_path):
    path = save_family(tmp_path / "model", family)
    prompt = list(range(20, 70))
    plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    wanted = plain.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=False
    )
    loaded = load_model(find_model(str(path)), choose_placement("cpu", "fp32")).eval()
    written = generate(open_forward(loaded, 80, tile=16, page=32), prompt, Sampling(max_tokens=12), ends=())
    assert list(written) == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize("family", TRAINED)
def test_a_run_plans_trains_and_exports(family, way, tmp_path, capsys):
    """The recipe itself for one update, and what it leaves read by plain transformers."""
    path = save_family(tmp_path / "model", family)
    code = tmp_path / "code"
    code.mkdir()
    for module in (json.decoder, json.encoder, bisect, heapq):
        shutil.copy(module.__file__, code)
    config = from_mapping(
        {
            "model": {"name": str(path), "device": "cpu", "precision": "fp32"},
            "data": {"repositories": [str(code)]},
            "lora": {"rank": 4},
            "training": {"context": 128, "tokens_per_update": 256, "max_steps": 1, "step": way, "evaluate_tokens": 256},
            "evaluation": {"at_end": False},
            "output": {"directory": str(tmp_path / "out")},
        }
    )
    session = RecordingSession(config=config, run=RunDirectory.create(config))
    train(session)
    [finished] = session.of(RunFinished)
    assert finished.status == "completed"
    if way == "whole":
        return
    assert cli.main(["export", str(session.run.path), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.model_type == family
    names = families.FAMILIES[family].gguf
    status = cli.main(["export", str(session.run.path), "--to", "gguf", "--output", str(tmp_path / "gguf")])
    said = capsys.readouterr().err
    if names is None:
        assert (status, "GGUF export" in said) == (2, True)
    elif not any(
        refused in said for refused in ("sliding window", "biases", "every 4th", "every 6th", "lm_head", "bias of")
    ):
        assert status == 0


class _Silent:
    def progress(self, *_, **__):
        pass

    def stop_requested(self):
        return False


# --- what is denied -----------------------------------------------------------------------------------------


def _only_config(folder, family, **changes):
    """A model's config.json and nothing else: whatever is read after it would be missed."""
    tiny_config(family, **changes).save_pretrained(folder)
    return folder


REFUSED = {
    "attention to both sides": ("gemma3_text", {"use_bidirectional_attention": True}, "causally"),
    "a family that is not there": ("bloom", {}, "bloom"),
}


@pytest.mark.parametrize("command", ["plan", "train", "generate", "doctor"])
@pytest.mark.parametrize(("family", "changes", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_denied_is_refused_in_one_line_before_anything_is_read(
    family, changes, says, command, tmp_path, capsys
):
    ROWS.setdefault("bloom", [{}]) if family == "bloom" else None
    try:
        model = str(_only_config(tmp_path / "model", family, **changes))
    finally:
        ROWS.pop("bloom", None)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    more = ["--repo", str(tmp_path / "code"), "--output", str(tmp_path / "out")]
    arguments = {
        "plan": ["plan", "--model", model],
        "train": ["train", "--model", model, *more],
        "generate": ["generate", model, "--prompt", "x"],
        "doctor": ["doctor", "--quick", "--model", model, *more],
    }[command]
    status = cli.main(arguments)
    said = capsys.readouterr()
    assert not (tmp_path / "out").exists()
    if command == "doctor":
        assert status == 3, "a pre-flight that fails, as its rows say"
        assert says in next(line for line in said.out.splitlines() if line.startswith("✗ model"))
        return
    assert (status, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert "is not supported by" in said.err


@pytest.mark.parametrize("to", ["adapter", "merged", "gguf"])
def test_the_run_of_a_family_that_was_overruled_is_not_exported(to, tmp_path, monkeypatch, capsys):
    path = save_family(tmp_path / "model", "llama")
    run = finished_run(tmp_path / "out", path)
    monkeypatch.setitem(families.FAMILIES, "llama", families.FAMILIES["llama"])  # put back afterwards
    row = families.FAMILIES["llama"]
    families.admit("llama", dataclasses.replace(row, does=row.does - {"exported"}, because="a proof failed"))
    assert cli.main(["export", str(run.path), "--to", to, "--output", str(tmp_path / "new")]) == 2
    assert "a proof failed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_row_can_be_overruled_and_everything_that_asks_follows(monkeypatch, tmp_path):
    spec = catalogue()["codellama-7b"]
    row = families.FAMILIES["llama"]
    monkeypatch.setitem(families.FAMILIES, "llama", row)
    assert streaming_refusal(spec, 1024) is None
    families.admit("llama", dataclasses.replace(row, does=row.does - {"streamed"}, because="its proof failed"))
    assert streaming_refusal(spec, 1024) == "its proof failed"
    assert "llama" not in families.supporting("streamed")
    model = load_model(find_model(str(save_family(tmp_path / "model", "llama"))), choose_placement("cpu", "fp32"))
    assert isinstance(open_forward(model.eval(), 20), LibraryForward)
    with pytest.raises(EliteError, match="its proof failed"):
        StreamedStep(model, StreamPlan(tile=16, key_block=16), device=CPU)
    families.admit("llama", dataclasses.replace(row, does=frozenset(), because="its proof failed"))
    with pytest.raises(EliteError, match="its proof failed"):
        find_model("codellama-7b")


def test_a_row_can_be_added(monkeypatch, tmp_path):
    monkeypatch.setitem(families.FAMILIES, "olmo2", families.Family())
    settings = dict.fromkeys(("num_key_value_heads",), 2)
    _only_config(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "olmo2", **settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_model(str(tmp_path)).family == "olmo2"


def test_the_auxiliary_loss_of_routers_forbids_nothing(tmp_path):
    model = _only_config(tmp_path, "mixtral", output_router_logits=True)
    assert streaming_refusal(find_model(str(model)), 128) is None


def test_dropout_of_pretraining_is_off(tmp_path):
    path = save_family(tmp_path / "model", "starcoder2")
    assert AutoConfig.from_pretrained(path).residual_dropout == 0.1
    model = load_model(find_model(str(path)), choose_placement("cpu", "fp32")).train()
    ids = torch.arange(20)[None]
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits)
