"""A process imports its recipe while the garbage collector rests, and collects again afterwards."""

from __future__ import annotations

import gc
import sys

import pytest

from engine.launch.recipe_import import collector_at_rest, import_function

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
