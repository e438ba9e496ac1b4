"""What only a GPU can show: every backend, copies on side streams, pinned and paged homes, fused kernels."""

from __future__ import annotations

import pytest
import torch

from engine.attention.backend import AttentionBackend
from engine.attention.blockwise import attend, attend_backward
from engine.attention.mask_tiles import causal_pieces
from engine.attention.select import BACKENDS, time_backend, usable_backends
from engine.attention.torch_flash import TorchFlash
from engine.generation.forward import open_forward
from engine.generation.sampling import Sampling, generate
from engine.models.fine_tuning import FullTuning
from engine.models.fused import fuse_kernels
from engine.models.loading import _keep_differentiable
from engine.plan.stream_plan import StreamPlan
from engine.streaming.fetched_layers import fetched_layers
from engine.streaming.step import StreamedStep
from tests.attention.plain import Held, plain
from tests.streaming.models import tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.streaming.test_adapters import _adapt, _quantise
from tests.streaming.test_four_bit_weights import mapped_from_files
from tests.streaming.test_randomness import Noise

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")


def _tokens(n):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _full_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


OPTIONS = {
    "pinned hidden states": {},
    "no stash": {"stash": False},
    "checkpoints": {"checkpoint_every": 2},
    "disk": {"hidden_home": "disk", "stash_home": "disk"},
    "gradient in RAM, hidden states on the disk": {"hidden_home": "disk", "gradient_home": "host"},
    "gradient on the GPU": {"gradient_home": "gpu"},
    "gradient on the disk": {"gradient_home": "disk"},
    "attention outputs on the disk": {"stash_home": "disk"},
    "attention outputs on the GPU": {"hidden_home": "gpu", "stash_home": "gpu"},
    "on the GPU": {"hidden_home": "gpu"},
    "streamed weights": {"weights": "streamed"},
    "host keys and values": {"kv_home": "host"},
    "all of it": {
        "checkpoint_every": 3,
        "hidden_home": "disk",
        "stash_home": "disk",
        "weights": "streamed",
        "kv_home": "host",
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_fp32_gradient_of_every_home(family, options, tmp_path):
    tokens = _tokens(4001)
    sizes = {"max_position_embeddings": 8192, "hidden_size": 128, "head_dim": 32}
    reference = tiny_model(family, **sizes).to(GPU)
    expected_loss, expected = whole_sequence(reference, tokens.to(GPU))
    model = tiny_model(family, **sizes)
    model = model if options.get("weights") == "streamed" else model.to(GPU)
    plan = StreamPlan(tile=300, key_block=700, attention="efficient", **options)
    if options.get("weights") == "streamed":
        model.requires_grad_(requires_grad=False)
        model = _adapt(model)
        expected = None
    with StreamedStep(model, plan, device=GPU, spill_directory=tmp_path) as step:
        for _ in range(3):  # the second and third find buffers in use
            loss, gradients = streamed(step, tokens)
            if expected is None:
                assert all(g.isfinite().all() for g in gradients.values())
                expected, expected_loss = gradients, loss
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            error, name = worst_error(gradients, {n: g.to(gradients[n].device) for n, g in expected.items()})
            assert error < 5e-5, name


@pytest.mark.parametrize("backend", [kind.name for kind in BACKENDS if kind.name != "cpu"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(14, 2, 64), (12, 2, 128), (8, 8, 80)])
def test_backends_agree_with_the_definition(backend, heads, kv_heads, head_dim):
    usable = {b.name: b for b in usable_backends(GPU, torch.bfloat16, head_dim)}
    if backend not in usable:
        pytest.skip(f"{backend} does not serve this card")
    assert time_backend(usable[backend], GPU, torch.bfloat16, heads, kv_heads, head_dim) < 60


@pytest.mark.parametrize("backend", [kind.name for kind in BACKENDS if kind.name != "cpu"])
@pytest.mark.parametrize("borders", [[0, 3, 500, 501, 1000], [0, 1024, 2048, 3072]])
def test_documents_in_one_call_equal_one_call_a_document(backend, borders):
    usable = {b.name: b for b in usable_backends(GPU, torch.bfloat16, 64)}
    if backend not in usable:
        pytest.skip(f"{backend} does not serve this card")
    generator = torch.Generator(GPU).manual_seed(0)
    q, k, v, g = (
        torch.randn((1, borders[-1], heads, 64), generator=generator, device=GPU).bfloat16().transpose(1, 2)
        for heads in (14, 2, 2, 14)
    )
    out, logsumexp = usable[backend].forward_documents(q, k, v, borders=borders, scale=0.1)
    together = (
        out,
        logsumexp,
        *usable[backend].backward_documents(g, q, k, v, out, logsumexp, borders=borders, scale=0.1),
    )
    flash = TorchFlash()
    out, logsumexp = AttentionBackend.forward_documents(flash, q, k, v, borders=borders, scale=0.1)
    alone = AttentionBackend.backward_documents(flash, g, q, k, v, out, logsumexp, borders=borders, scale=0.1)
    for got, want in zip(together, (out, logsumexp, *alone), strict=True):
        assert got.shape == want.shape
        assert (got.float() - want.float()).norm() < 1e-2 * want.float().norm()


@pytest.mark.parametrize("backend", [kind.name for kind in BACKENDS if kind.name != "cpu"])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("documents", [[0], [0, 3, 370, 371, 700]])
def test_block_wise_attention_of_every_kernel(backend, window, documents):
    usable = {b.name: b for b in usable_backends(GPU, torch.bfloat16, 64)}
    if backend not in usable:
        pytest.skip(f"{backend} does not serve this card")
    generator = torch.Generator(GPU).manual_seed(0)
    q, k, v, g = (
        torch.randn((1, 1000, heads, 64), generator=generator, device=GPU).bfloat16().transpose(1, 2)
        for heads in (14, 2, 2, 14)
    )
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    expected = plain(*leaves, 0.1, window, documents, device=GPU)
    expected.backward(g.double())
    held, dq = Held(k, v, torch.float32), torch.empty_like(q, dtype=torch.float32)
    for start in reversed(range(0, 1000, 256)):
        stop = min(start + 256, 1000)
        tile = [x[:, :, start:stop] for x in (q, k, v)]
        pieces = list(causal_pieces(start, stop, key_block=300, window=window, document_starts=documents))
        how = {"start": start, "pieces": pieces, "earlier": held, "backend": usable[backend], "scale": 0.1}
        out, logsumexp = attend(*tile, **how)
        error = (out.double() - expected.detach()[:, :, start:stop]).norm() / expected.detach()[:, :, start:stop].norm()
        assert error < 1e-2
        dq[:, :, start:stop], dk, dv = attend_backward(g[:, :, start:stop], *tile, out, logsumexp, **how)
        held.add_gradients(start, stop, dk, dv)
    for name, got, leaf in zip("qkv", (dq, held.dk, held.dv), leaves, strict=True):
        assert (got.double() - leaf.grad).norm() < 1e-2 * leaf.grad.norm(), f"gradient of {name}"


@pytest.mark.parametrize("backend", ["cudnn", "flash", "efficient"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_bf16_is_no_further_from_fp32_than_whole_sequence_bf16(backend, fused, train):
    if backend not in {b.name for b in usable_backends(GPU, torch.bfloat16, 64)}:
        pytest.skip(f"{backend} does not serve this card")
    error = {"streamed": 0.0, "whole": 0.0}
    sizes = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 8192}
    for seed in range(12):  # the ratio of one seed scatters by some percent

        def build(dtype, fuse, seed=seed):
            model = tiny_model("qwen3", seed=seed, **{**sizes, "head_dim": 64})
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16().to(GPU, dtype)
            model = model.to(GPU)
            if fuse:
                assert fuse_kernels(model, GPU)
            torch.manual_seed(seed)
            return _adapt(model) if train == "lora" else model

        from transformers.models.qwen3 import modeling_qwen3

        unfused = modeling_qwen3.apply_rotary_pos_emb, modeling_qwen3.Qwen3RMSNorm, modeling_qwen3.Qwen3MLP
        tokens = _tokens(1500).to(GPU)
        _, exact = whole_sequence(build(torch.float32, fuse=False), tokens)
        _, whole = whole_sequence(build(torch.bfloat16, fuse=False), tokens)
        try:
            plan = StreamPlan(tile=256, key_block=512, attention=backend)
            with StreamedStep(build(torch.bfloat16, fuse=fused), plan, device=GPU) as step:
                _, tiled = streamed(step, tokens)
        finally:
            modeling_qwen3.apply_rotary_pos_emb, modeling_qwen3.Qwen3RMSNorm, modeling_qwen3.Qwen3MLP = unfused
        size = sum(float(g.double().square().sum()) for g in exact.values())
        for name, found in (("streamed", tiled), ("whole", whole)):
            assert found.keys() == exact.keys()
            difference = sum(float((found[n].double().cpu() - exact[n].double().cpu()).square().sum()) for n in exact)
            error[name] += difference / size
    print(f"{backend} fused={fused} {train}: {(error['streamed'] / error['whole']) ** 0.5:.3f}")
    assert error["streamed"] ** 0.5 <= 1.05 * error["whole"] ** 0.5


def test_gpu_memory_does_not_grow_with_context_when_keys_and_values_live_on_the_host():
    peaks = []
    for n in (4096, 16384):
        model = _adapt(tiny_model("llama", dtype=torch.bfloat16, max_position_embeddings=2**15).to(GPU))
        plan = StreamPlan(tile=512, key_block=1024, kv_home="host", attention="flash")
        with StreamedStep(model, plan, device=GPU) as step:
            step.run(_tokens(n))
            torch.cuda.synchronize()
            step.wide_gradients.clear()
            torch.cuda.reset_peak_memory_stats()
            step.run(_tokens(n))
            peaks.append(torch.cuda.max_memory_allocated())
        del model, step
        torch.cuda.empty_cache()
    # Rotary tables are kept while they are small; nothing else may grow.
    assert peaks[1] - peaks[0] < 16384 * 16 * 2 * 4 * 2


@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_streamed_trained_weights_follow_their_masters(home):
    """Two updates of a bf16 model whose layers wait on the host: a stale copy, or a lost gradient, would show."""
    gradients = {}
    for weights in ("resident", "streamed"):
        model = tiny_model("llama", dtype=torch.bfloat16)
        tuning = FullTuning(model if weights == "streamed" else model.to(GPU), torch.device(home))
        plan = StreamPlan(tile=64, key_block=128, weights=weights, attention="flash")
        assert tuning.masters is not None
        with StreamedStep(model, plan, device=GPU, wide_gradients=tuning.masters.gradients) as step:
            for _ in range(3):
                for master in tuning.weights.values():
                    master.grad = None
                step.run(_tokens(300))
                with torch.no_grad():
                    for master in tuning.weights.values():
                        assert master.grad is not None
                        assert master.device.type == home
                        master -= 0.5 * master.grad
                tuning.publish()
            gradients[weights] = {name: p.grad.cpu().clone() for name, p in tuning.weights.items()}
    for name, expected in gradients["resident"].items():
        torch.testing.assert_close(gradients["streamed"][name], expected, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"stash": False, "checkpoint_every": 2, "kv_home": "host"}])
def test_four_bit_weights_from_the_host(options):
    """Part of a layer that was not copied would be read on the host, which a CPU's test cannot show."""
    found = {}
    for weights in ("nf4", "nf4-streamed"):
        model = _adapt(_quantise(tiny_model("qwen2", dtype=torch.bfloat16)))
        model = model if weights == "nf4-streamed" else model.to(GPU)
        plan = StreamPlan(tile=64, key_block=128, weights=weights, attention="flash", **options)
        with StreamedStep(model, plan, device=GPU) as step:
            for _ in range(2):
                found[weights] = streamed(step, _tokens(300))
    assert found["nf4-streamed"][0] == found["nf4"][0]
    for name, expected in found["nf4"][1].items():
        torch.testing.assert_close(found["nf4-streamed"][1][name].cpu(), expected.cpu(), rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("stash", [True, False])
def test_noise_of_the_gpu_s_generator_is_the_same_in_every_pass(stash):
    """The reference replays what the forward pass drew on the GPU; a second window draws other numbers."""
    tokens, tile = _tokens(1000), 300
    model = tiny_model("llama", max_position_embeddings=2048)
    for layer in model.model.layers:
        layer.mlp.down_proj = Noise(layer.mlp.down_proj)
    model.model.embed_tokens = Noise(model.model.embed_tokens)
    model.to(GPU)
    before = torch.cuda.get_rng_state()
    plan = StreamPlan(tile=tile, key_block=700, attention="efficient", stash=stash)
    noises = [module for module in model.modules() if isinstance(module, Noise)]
    with StreamedStep(model, plan, device=GPU) as step:
        loss, gradients = streamed(step, tokens)
        records = [torch.cat(noise.record[:4], dim=1) for noise in noises]
        for noise in noises:
            noise.record.clear()
        streamed(step, tokens)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for noise, drawn in zip(noises, records, strict=True):
        assert not torch.equal(noise.record[0], drawn[:, :tile])
        noise.replay = drawn
    expected_loss, expected = whole_sequence(model, tokens.to(GPU))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, {n: g.to(gradients[n].device) for n, g in expected.items()})
    assert error < 5e-5, name


FOUR_BIT = {
    "resident": {"weights": "nf4"},
    "resident again": {"weights": "nf4"},
    "host": {"weights": "nf4-streamed"},
    "files": {"weights": "nf4-streamed", "weights_home": "disk"},
}
WIDE = {"hidden_size": 256, "intermediate_size": 704, "head_dim": 64, "num_hidden_layers": 5}


def _four_bit(options, folder):
    base = _quantise(tiny_model("qwen2", dtype=torch.bfloat16, **WIDE))
    _keep_differentiable(base)
    if "weights_home" in options:
        mapped_from_files(base, folder)
    return base.to(GPU) if options["weights"] == "nf4" else base


def test_four_bit_weights_from_the_host_or_files_give_the_resident_step(tmp_path):
    """The blocks are the same, so that the losses are equal, and gradients as near as two runs of one step."""
    tokens, losses, gradients = _tokens(2500), {}, {}
    for name, options in FOUR_BIT.items():
        model = _adapt(_four_bit(options, tmp_path))
        plan = StreamPlan(tile=300, key_block=700, **options)
        with StreamedStep(model, plan, device=GPU, spill_directory=tmp_path) as step:
            for _ in range(3):
                losses[name], found = streamed(step, tokens)
            gradients[name] = {name: gradient.clone() for name, gradient in found.items()}
    noise = worst_error(gradients["resident again"], gradients["resident"])[0]
    for name in ("host", "files"):
        assert losses[name] == losses["resident"]
        assert worst_error(gradients[name], gradients["resident"])[0] <= max(1e-6, 3 * noise), name


@pytest.mark.parametrize("options", [FOUR_BIT["host"], FOUR_BIT["files"]], ids=["host", "files"])
def test_text_of_layers_that_fetch_themselves(options, tmp_path):
    ids = _tokens(300).to(GPU)[None]

    def text(model):
        forward = open_forward(model, 340, tile=128, page=256)
        tokens = list(generate(forward, ids[0].tolist(), Sampling(max_tokens=30), frozenset()))
        with torch.no_grad():
            return tokens, model(input_ids=ids, use_cache=False).logits

    tokens, logits = text(_adapt(_four_bit(FOUR_BIT["resident"], tmp_path)).eval())
    model = _adapt(_four_bit(options, tmp_path)).eval()
    with fetched_layers(model, GPU, mapped="weights_home" in options):
        found, values = text(model)
    assert found == tokens
    assert torch.equal(values, logits)
