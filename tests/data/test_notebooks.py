from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.repositories import Write, module

from engine.data.collect import collect
from engine.data.documents import Document, Texts
from engine.data.notebooks import NotebookError, cells_as_text

NOTEBOOK = {
    "nbformat": 4,
    "metadata": {"kernelspec": {"language": "python"}},
    "cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "import os\nx = 1", "outputs": [{"data": {"image/png": "AAAA" * 1000}}]},
        {"cell_type": "code", "source": ["y = 'é'"], "outputs": []},
    ],
}
TEXT = "# %% [markdown]\n# # Title\n# text\n\n# %%\nimport os\nx = 1\n\n# %%\ny = 'é'\n"


def test_cells_without_outputs() -> None:
    assert cells_as_text(json.dumps(NOTEBOOK)) == TEXT


def test_the_older_form() -> None:
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["x\n", "y"]}]}]}
    assert cells_as_text(json.dumps(old)) == "# %%\nx\ny\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 3}', '{"cells": [{"source": 1}]}', "[" * 100_000])
def test_what_is_no_notebook(content: str) -> None:
    with pytest.raises(NotebookError):
        cells_as_text(content)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json(value: object) -> None:
    with contextlib.suppress(NotebookError):
        cells_as_text(json.dumps({"cells": value})).encode()


def test_notebooks_are_read_as_cells_or_skipped(write: Write) -> None:
    huge = {**NOTEBOOK, "cells": [*NOTEBOOK["cells"], {"cell_type": "code", "source": "x\n" * 9000}]}
    root = write(
        {
            "a.ipynb": json.dumps(NOTEBOOK),
            "broken.ipynb": "{}",
            "huge.ipynb": json.dumps(huge),
            **{f"m{i}.py": module(f"m{i}") for i in range(3)},
        }
    )
    assert collect([root], max_file_bytes=2000).skipped == {"notebook": 3}
    collection = collect([root], max_file_bytes=2000, include=["notebook"])
    texts = Texts([root], 2000)
    found = {str(file.path): texts.read(file) for file in collection.files}
    assert isinstance(found["a.ipynb"], Document)
    assert found["a.ipynb"].text == TEXT
    assert (found["broken.ipynb"], found["huge.ipynb"]) == ("notebook", "too large")
    assert Path("m0.py").name in found
