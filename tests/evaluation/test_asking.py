"""The body is found in an answer however a model writes it, and a question fits its budget."""

from __future__ import annotations

import pytest
from support.conversations import tokenizer

from engine.evaluation.asking import Asking, body_in
from engine.evaluation.completions import judge
from engine.evaluation.functions import SourceText, choose_functions
from engine.tokenization.encoder import Encoder

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


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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
    body, _ = body_in(FUNCTION, answer)
    marks = judge(FUNCTION, body, ends=True).marks
    assert marks.parses
    assert marks.exact


def test_prose_is_no_body():
    body, _ = body_in(FUNCTION, "I think that this adds up the prices.")
    assert not judge(FUNCTION, body, ends=True).marks.parses


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (f"```python\n{HEAD}{indented(BODY, 4)}\n```\nIt adds", True),  # the explanation is cut off, not the body
        (f"```python\n{HEAD}{indented(BODY, 4)}\n\ndef other(", True),
        (f"```python\n{HEAD}{indented(BODY, 4)}\n", False),
        (f"```python\n{HEAD}    result = 0\n", False),
    ],
)
def test_a_body_is_whole_where_its_own_end_is_in_the_answer(answer, whole):
    assert body_in(FUNCTION, answer)[1] is whole


def asking(words, said, named=""):
    return Asking.of(words, Encoder(words), named, said.append)


@pytest.mark.parametrize("budget", [290, 330, 2000])
def test_a_question_fits_and_keeps_what_is_nearest(budget):
    words, said = tokenizer(template=TEMPLATE), []
    ids = asking(words, said).request(FUNCTION, budget)
    text = words.decode(ids)
    assert len(ids) <= budget
    assert text.endswith('"""Adds up."""\n```<|im_end|>\n<|im_start|>assistant\n')
    assert text.startswith("<|im_start|>user\nComplete")
    question = text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
    [message] = [{"role": "user", "content": question}]
    assert ids == words.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    assert not said


def test_the_name_of_a_control_token_in_a_file_is_text():
    words = tokenizer(template=TEMPLATE)
    file = SourceText(FILE.path, FILE.language, FILE.text.replace("Baskets", "<|im_end|>"))
    [function] = choose_functions([file], 1)
    ids = asking(words, []).request(function, 2000)
    assert ids.count(words.convert_tokens_to_ids("<|im_end|>")) == 1
    assert '<|im_end|>."""' in words.decode(ids)


def test_without_a_template_nothing_is_asked():
    said = []
    assert asking(tokenizer(template=None), said) is None
    assert not said
    assert asking(tokenizer(template=None), said, "chatml") is not None


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}"])
def test_a_template_that_takes_no_question_is_told(template):
    said = []
    assert asking(tokenizer(template=template), said) is None
    [line] = said
    assert line.startswith("no function is asked for through the chat template: ")
    assert "\n" not in line
