"""The body is found in an answer however a model writes it, and a question fits its budget."""

from __future__ import annotations

import pytest

from engine.evaluation.asking import Asking, body_in
from engine.evaluation.completions import judge
from engine.evaluation.functions import SourceText, choose_functions

FILE = SourceText(
    "shop/basket.py",
    "Python",
    '"""Baskets."""\n\n\nclass Basket:\n    def total(self, prices):\n        """Adds up."""\n'
    "        result = 0\n        for item in self.items:\n            result += prices[item]\n        return result\n",
)
[FUNCTION] = choose_functions([FILE], 5)
BODY = "result = 0\nfor item in self.items:\n    result += prices[item]\nreturn result"


def indented(text, by):
    return "\n".join(" " * by + line for line in text.split("\n"))


HEAD = "def total(self, prices):\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure! Here it is:\n\n```python\n{indented(HEAD + indented(BODY, 4), 4)}\n```\nIt adds up.",
        f"```\n{HEAD}{indented(BODY, 4)}\n```",  # at the left margin
        f'```python\n{HEAD}    """Adds up."""\n{indented(BODY, 4)}\n```',
        f"```python\n{HEAD}{indented(BODY, 4)}\n",  # cut off before its fence
        f"{HEAD}{indented(BODY, 4)}\n\ndef other():\n    pass\n",  # no fence, and goes on
        f"```python\n{indented(BODY, 8)}\n```",  # the body alone
    ],
)
def test_the_body_is_found(answer):
    body = body_in(FUNCTION, answer)
    marks = judge(FUNCTION, body, ends=True).marks
    assert marks.parses
    assert marks.exact


def test_prose_is_no_body():
    marks = judge(FUNCTION, body_in(FUNCTION, "I think that this adds up the prices."), ends=True).marks
    assert not marks.parses


class Letters:
    """A tokenizer of single letters with a template."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, **options):
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return f"<user>{messages[0]['content']}<answer>"

    def __call__(self, text, **_):
        return type("Encoded", (), {"input_ids": [ord(letter) for letter in text]})


@pytest.mark.parametrize("budget", [260, 300, 2000])
def test_a_question_fits_and_keeps_what_is_nearest(budget):
    ids = Asking(Letters()).request(FUNCTION, budget)
    text = "".join(map(chr, ids))
    assert len(ids) <= budget
    assert text.endswith('"""Adds up."""\n```<answer>')
    assert text.startswith("<user>Complete")
    assert Asking.possible(Letters())
    assert not Asking.possible(object())
