"""Where a Python function that is being written ends, and whether the file parses with it: `ast` is the judge."""

from __future__ import annotations

import ast

import pytest

from engine.evaluation.completions import judge
from engine.evaluation.functions import SourceText, function_end, functions_of

BEFORE = "import os\n\n\nclass Shelf:\n    def place(self, item, at=None):\n"
TRUTH = "        self.items[at] = item\n        return self\n"
AFTER = "\n    def clear(self):\n        self.items = {}\n\n\nROOMS = 3\n"
[FUNCTION] = [
    one for one in functions_of(SourceText("shelf.py", "Python", BEFORE + TRUTH + AFTER)) if "item" in one.body
][:1]

WHOLE = {
    "one statement": "        return item\n",
    "blank lines and a comment": "        item = item or at\n\n        # nothing else\n\n        return item\n",
    "a comment at the margin": "        item = at\n# not indented\n        return item\n",
    "an inner function": "        def key(x):\n            return x\n        return key(item)\n",
    "an inner class": "        class Box:\n            kept = 1\n\n        return Box\n",
    "a bracket that closes at the margin": "        names = [\n    item,\n]\n        return names\n",
    "a string with code at its margin": '        text = """\ndef other():\n    pass\n"""\n        return text\n',
    "an f-string": "        return f'{item!r:>{at}} {{}}'\n",
    "a docstring of its own": '        """Places it."""\n        self.items[at] = item\n',
    "branches": "        if at:\n            return 1\n        else:\n            raise KeyError\n",
    "a match": "        match item:\n            case [x, *_]:\n                return x\n",
    "a backslash": "        return item or \\\n    at\n",
}
BROKEN = {
    "an open bracket": "        return (item\n",
    "a bracket too many": "        return item)\n",
    "an open string": "        return 'item\n",
    "a break in no loop": "        break\n",
    "no block": "        if item:\n        return at\n",
    "a keyword twice": "        return dict(at=1, at=2)\n",
}
NEXT = (
    "    def other(self):\n        pass\n",
    "\n\nLIMIT = 4\n",
    "    @property\n    def size(self):\n        return 1\n",
    "class Case:\n    pass\n",
)


def lines_of_place(text):
    """Line on which `place` ends, by ast."""
    [function] = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == "place"
    ]
    return function.end_lineno


@pytest.mark.parametrize("following", NEXT)
@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_a_function_ends_where_ast_ends_it(body, following):
    written = body + following
    end = function_end(FUNCTION, written)
    assert end is not None
    assert (BEFORE + written[:end]).count("\n") + 1 == lines_of_place(BEFORE + written)
    assert function_end(FUNCTION, body) is None  # it may go on


@pytest.mark.parametrize("body", [*WHOLE.values(), *BROKEN.values()], ids=[*WHOLE, *BROKEN])
def test_a_file_parses_where_ast_and_the_compiler_say_so(body):
    try:
        compile(BEFORE + body + AFTER, "shelf.py", "exec")
        expected = True
    except SyntaxError:
        expected = False
    assert expected is (body in WHOLE.values())
    assert judge(FUNCTION, body, ends=True).marks.parses is expected


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_a_body_that_is_cut_off_is_no_function_that_parses(body):
    """A model that repeats a line until its limit would pass or fail by where the limit falls."""
    repeated = body + "        self.items = item\n" * 30
    for cut in (repeated, repeated.rstrip(), repeated + "        self"):
        ast.parse(BEFORE + cut + AFTER)
        assert not judge(FUNCTION, cut, ends=False).marks.parses
