"""Snippets are ranked as by a plain reading of BM25's formula, fit their budget, and come before the request."""

from __future__ import annotations

import math
import re

import pytest

from engine.evaluation.functions import SourceText, choose_functions
from engine.evaluation.lines import choose_lines, line_end
from engine.evaluation.retrieval import Bm25, RepositoryPrompts, words_of
from engine.evaluation.tasks import prompt_of, request_of
from engine.tokenization.encoder import demo_encoder

TEXTS = [
    "def open_store(path):\n    return Store(path)",
    "class Store:\n    def read_item(self, key):\n        return self._items[key]",
    "def unrelated():\n    pass",
    "store store store",
    "",
]


def plain_score(query, number, texts, k1=1.5, b=0.75):
    """Robertson and Zaragoza 2009, equation 3.15, with the rarity of Lucene; over lower-case words."""
    documents = [words_of(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    total = 0.0
    for word in words_of(query):
        holding = sum(word in document for document in documents)
        rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        times = documents[number].count(word)
        total += rarity * times * (k1 + 1) / (times + k1 * (1 - b + b * len(documents[number]) / mean))
    return total


@pytest.mark.parametrize("query", ["store.read_item(key)", "Store", "path path store", "nothing of it", ""])
def test_the_order_is_that_of_the_formula(query):
    scores = [plain_score(query, number, TEXTS) for number in range(len(TEXTS))]
    wanted = sorted((n for n in range(len(TEXTS)) if scores[n] > 0), key=lambda n: (-scores[n], n))
    assert Bm25(TEXTS).ranked(query) == wanted


def test_names_fall_into_their_words():
    assert words_of("readHTTPBody _x2 SNAKE_case") == ["read", "http", "body", "x", "2", "snake", "case"]


FILES = [
    SourceText("shop/stock.py", "Python", "def count_apples(shelf):\n    return shelf.apples\n" * 20),
    SourceText("shop/till/coins.py", "Python", "def change_for(price):\n    return coins(price)\n" * 20),
    SourceText("other/net.py", "Python", "def fetch(url):\n    return get(url)\n" * 20),
]
ASKED = SourceText(
    "shop/prices.py",
    "Python",
    '"""Prices."""\n\n\ndef price_of_apples(shelf):\n    apples = count_apples(shelf)\n    return apples * 3\n',
)


def test_what_is_added_fits_its_budget_and_the_request_keeps_its_end():
    encoder = demo_encoder()
    near = RepositoryPrompts(FILES, encoder)
    [function] = choose_functions([ASKED], 5)
    plain = prompt_of(function, "completion", encoder, 400)
    for before, first in ((near.snippets, "shop/stock.py"), (near.files, "shop/stock.py")):
        for budget in (64, 200, 400):
            ids = request_of(function, "completion", encoder, budget, before)
            assert len(ids) <= budget
            assert encoder.decode(ids).endswith("price_of_apples(shelf):\n")
        text = encoder.decode(request_of(function, "completion", encoder, 400, before))
        assert len(text) > len(encoder.decode(plain))
        last = re.findall(r"[\w/]+\.py", text)[-2]
        assert last == first  # the best, or nearest, is next to the request
    assert request_of(function, "completion", encoder, 400, None) == plain


def test_nothing_is_added_where_there_is_nothing():
    encoder = demo_encoder()
    [function] = choose_functions([ASKED], 5)
    assert RepositoryPrompts([], encoder).snippets(function, 100) == []
    assert RepositoryPrompts([], encoder).files(function, 100) == []


def test_lines_are_cut_where_they_stand():
    text = "\n".join(f"value_{number} = compute({number})" for number in range(40)) + "\n"
    lines = choose_lines([SourceText("a.py", "Python", text), SourceText("b.py", "Python", "def broken(:\n" * 30)], 50)
    assert 0 < len(lines) <= 6
    for line in lines:
        assert line.prefix + line.body + line.suffix == text
        assert "\n" not in line.body
        assert line.prefix.count("\n") >= 8
    assert choose_lines([SourceText("a.py", "Python", text)], 0) == []


@pytest.mark.parametrize(
    ("written", "end"), [("x = 1\ny", 5), ("x = 1", None), ("\nx\n", 2), ("\n\n", None), ("", None), ("  \nx", None)]
)
def test_a_line_ends_at_its_line_end(written, end):
    assert line_end(written) == end
