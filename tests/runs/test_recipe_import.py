"""A process imports its recipe while the garbage collector rests, and collects again afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from engine.launch.recipe_import import collector_at_rest, deferred, import_function

SOURCE = "import gc\nCOLLECTED = gc.isenabled()\n\ndef recipe():\n    return COLLECTED\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "recipe_of_this_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "recipe_of_this_test"
    sys.modules.pop("recipe_of_this_test", None)


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_rests_during_the_import_alone(module, before):
    try:
        (gc.enable if before else gc.disable)()
        recipe = import_function(f"{module}:recipe")
        assert gc.isenabled() == before
    finally:
        gc.enable()
    assert recipe() is False


def test_it_collects_after_an_import_that_failed(module):
    with pytest.raises(AttributeError):
        import_function(f"{module}:nothing")
    with pytest.raises(ModuleNotFoundError):
        import_function("no_such_module_of_the_engine:recipe")
    assert gc.isenabled()


def test_what_was_imported_is_left_out_of_later_passes():
    frozen = gc.get_freeze_count()
    with collector_at_rest():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() >= frozen + len(kept)


IMPORTS = """
import sys
from engine.launch.recipe_import import collector_at_rest
with collector_at_rest():
    import peft
import bitsandbytes, torch
print("bitsandbytes" in sys.modules, torch.compile.__qualname__, "torch._inductor.compile_fx" in sys.modules)
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)).item())
"""


NESTED = """
import torch
from engine.launch.recipe_import import collector_at_rest
before = torch.compile
with collector_at_rest():
    with collector_at_rest():
        import bitsandbytes
        assert torch.compile is not before
    assert torch.compile is before
assert torch.compile is before
"""


def test_contexts_within_each_other_leave_torchs_compiler_as_it_was():
    subprocess.run([sys.executable, "-c", NESTED], check=True)


def test_importing_bitsandbytes_does_not_import_the_compiler():
    done = subprocess.run([sys.executable, "-c", IMPORTS], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == ["True compile False", "2.0"]


def test_a_deferred_function_is_compiled_when_it_is_called_and_once():
    compiled = []

    def compiler(model=None, **options):
        compiled.append((model, options))
        return lambda *args, **named: ("compiled", model(*args, **named))

    def add(a, b=1):
        """Adds."""
        return a + b

    later = deferred(compiler)(add, dynamic=False)
    assert (later.__name__, later.__doc__, compiled) == ("add", "Adds.", [])
    assert [later(1), later(1, b=2)] == [("compiled", 2), ("compiled", 3)]
    assert compiled == [(add, {"dynamic": False})]


def test_what_is_no_function_is_compiled_at_once():
    compiled = []
    compiler = deferred(lambda model=None, **options: compiled.append((model, options)))
    compiler(gc)
    compiler(fullgraph=True)
    assert compiled == [(gc, {}), (None, {"fullgraph": True})]
