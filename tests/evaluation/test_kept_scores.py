"""An evaluation from kept scores of the base model is the first one again; whatever changes them is scored anew."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.conversations import tokenizer
from support.tiny import tiny_model

from engine.config import DataSection, EvaluationSection
from engine.data.dataset import build_dataset
from engine.evaluation import general
from engine.evaluation.asking import Asking
from engine.evaluation.baselines import Baselines, digest
from engine.evaluation.functions import SourceText
from engine.evaluation.held_out import HeldOut
from engine.evaluation.measure import Subject, evaluate_pair
from engine.steps.whole_step import TokenScores
from engine.tokenization.encoder import Encoder

TEMPLATE = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
FILES = ("bisect.py", "queue.py", "shelve.py")
TRAINED = [SourceText("near.py", "Python", "def locked(self, item):\n    return self.queue.append(item)\n")]
SUBJECT = Subject(run="r", model="m", device="cpu", context=160, data="d")
SHORT = {"tokens": 64, "functions": 1, "function_tokens": 60, "lines": 1}
SETTINGS = EvaluationSection(**SHORT)


def copy_library(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text((Path(json.__file__).parents[1] / name).read_text())


class Model:
    """A model as a pair opens it, and as a step that scores with plain transformers."""

    def __init__(self, model):
        self.model, self.step, self.opened = model.eval(), self, 0

    @torch.no_grad()
    def token_scores(self, window):
        ids = torch.from_numpy(np.asarray(window.ids, dtype=np.int64))
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").float().numpy()
        return TokenScores(losses, logits.argmax(-1).numpy())

    def close(self):
        """There is nothing to free."""

    @contextlib.contextmanager
    def writing(self):
        yield self.model

    @contextlib.contextmanager
    def open(self):
        self.opened += 1
        yield self


class Place:
    """Evaluates two tiny models on one file, with the scores kept in a folder."""

    def __init__(self, path):
        self.code, self.folder, self.cache = path / "code", path / "baselines", path / "cache"
        copy_library(self.code, FILES)
        size = len(tokenizer())
        self._base, self._tuned = (Model(tiny_model(kind, vocab_size=size)) for kind in ("llama", "qwen2"))

    def base(self):
        return self._base.open()

    def tuned(self):
        return self._tuned.open()

    def evaluate(self, settings=SETTINGS, *, template=TEMPLATE, trained=TRAINED, code=None):
        """The evaluation without its duration, and whether the base model was opened for it."""
        words = tokenizer(template=template)
        encoder = Encoder(words)
        dataset = build_dataset(
            DataSection(repositories=[str(code or self.code)]), tokenizer=words, context=160, cache=self.cache
        )
        before = self._base.opened
        found = evaluate_pair(
            self,
            HeldOut.whole(dataset, 160, together=True),
            encoder,
            settings,
            SUBJECT,
            lambda *_: None,
            baselines=Baselines(folder=self.folder, model="m"),
            trained=trained,
            asking=Asking.of(words, encoder, "", print),
        )
        return dataclasses.replace(found, seconds=0.0), self._base.opened > before


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("kept"))
    first, opened = made.evaluate()
    assert opened
    assert {row.arm for row in first.arms} == {
        "base + snippets", "base + files", "base + its chat template", "adapter + snippets",
        "adapter + its chat template",
    }  # fmt: skip
    [asked] = [task for task in first.tasks if task.task == "asked"]
    by_arm = {(one.arm, row.name): row.tuned for one in first.arms for row in one.rows}
    for row in asked.rows:
        assert row.base == by_arm["base + its chat template", row.name]
        assert row.tuned == by_arm["adapter + its chat template", row.name]
    assert len(first.general) == 2
    made.first = first
    [made.path] = made.folder.glob("evaluation-*.json")
    return made


def test_the_second_evaluation_is_the_first_without_the_base_model(place):
    assert place.evaluate() == (place.first, False)


def test_what_changes_the_scores_of_the_base_model_has_it_scored_again(place, monkeypatch):
    longer = [*TRAINED, SourceText("far.py", "Python", "y = 2\n")]
    copy_library(other := place.code.parent / "other", [*FILES[1:], "sched.py"])
    changes = [
        {"template": TEMPLATE.replace("{{ m.content }}", "{{ m.content }}!")},
        {"template": None},
        {"trained": longer},
        {"code": other},
        *(
            {"settings": EvaluationSection(**{**SHORT, name: value})}
            for name, value in {
                "retrieval": False, "general": False, "lines": 2, "functions": 0, "function_tokens": 61, "tokens": 70,
            }.items()
        ),
    ]  # fmt: skip
    for change in changes:
        assert place.evaluate(**change)[1], change
        assert not place.evaluate(**change)[1], change
    # The library of another Python has other texts.
    monkeypatch.setattr(general, "_MODULES", general._MODULES[1:])
    assert place.evaluate()[1]


def test_scores_of_another_form_are_not_taken(place):
    """As an earlier version may have kept them: intact by their hash, but without a way to answer."""
    path, kept = place.path, json.loads(place.path.read_text())["value"]
    forms = [
        {name: value for name, value in kept.items() if name != "general"},
        {**kept, "written": [entry for entry in kept["written"] if entry[:2] != ["completion", ""]]},
        {**kept, "written": [[task, way, found[1:]] for task, way, found in kept["written"]]},
        {**kept, "tally": {"sums": [[1.0]], "counts": [[1.0, 2.0]]}},
        {**kept, "tally": {name: kept["tally"][name] for name in ("sums", "counts")}},
        {**kept, "tally": {**kept["tally"], "likeliest": kept["tally"]["likeliest"][1:]}},
        {**kept, "tally": {**kept["tally"], "places": [3], "likeliest": [3]}},
        {**kept, "tally": []},
        [],
    ]
    for form in forms:
        path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": digest(form), "value": form}))
        assert place.evaluate() == (place.first, True), form
