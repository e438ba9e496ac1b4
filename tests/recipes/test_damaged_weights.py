"""`engine train` on a model whose files hold weights that are not finite."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine.assets import asset


@pytest.mark.parametrize(("poison", "named"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_weights_that_are_not_finite_end_a_run_with_their_name(tmp_path, poison, named):
    base = tmp_path / "base"
    shutil.copytree(asset("demo-model"), base)
    tensors = load_file(base / "model.safetensors")
    damaged = "model.layers.1.mlp.up_proj.weight"
    tensors[damaged] = tensors[damaged].clone()
    tensors[damaged][-1, 3] = poison
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("queues.py", "locks.py", "runners.py", "timeouts.py"):
        shutil.copy(Path(asyncio.__file__).parent / name, repository)
    command = [sys.executable, "-m", "engine", "train", "--model", str(base), "--repo", str(repository)]
    settings = ["model.device=cpu", "training.context=128", "training.tokens_per_update=256", "training.max_steps=2"]
    settings += ["training.evaluate_tokens=512", f"output.directory={tmp_path / 'out'}"]
    found = subprocess.run(
        [*command, *(part for setting in settings for part in ("--set", setting))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert found.returncode not in (0, 1)
    [line] = [line for line in found.stderr.splitlines() if "weights are damaged" in line]
    assert f"{damaged} in {base / 'model.safetensors'} holds {named}" in line
    assert "Traceback" not in found.stderr
