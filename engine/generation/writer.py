"""Generates text with the models of a run, or with a single model; loads once, serves any number of requests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import structs

from engine.config import RunConfig
from engine.data.line_ends import ends_in_crlf, with_line_feeds
from engine.errors import EliteError
from engine.errors.generation import FILL_UNAVAILABLE, GENERATION_UNKNOWN, SIDE_MISSING
from engine.errors.model import MODEL_UNKNOWN
from engine.errors.runs import RUN_UNKNOWN
from engine.generation.batched import Generator, open_generator
from engine.generation.request import Side, TextRequest
from engine.generation.run_models import ModelPair, RunModels, load_base, load_pair, models_of, writing, writing_layout
from engine.generation.sampling import Sampling
from engine.generation.text import stream_text
from engine.models.catalogue import catalogue, find_model
from engine.models.families import require
from engine.models.loading import load_tokenizer
from engine.models.placement import choose_placement, device_name
from engine.plan.step_layout import StepLayout
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import find_run
from engine.steps.failures import memory_errors
from engine.tokenization.encoder import Encoder


class Writer:
    """Generates text with up to two models.

    Attributes:
        name: Name of the run or the model.
        device: Device that it runs on.
        sides: The models that there are.
        tokenizer: Of both.
        models: Where they come from.
        chat_template: data.chat_template of the run; "" for a model.
    """

    def __init__(
        self,
        name: str,
        found: RunModels,
        opened: Callable[[Side], Any],
        sides: tuple[Side, ...],
        chat_template: str = "",
    ) -> None:
        self.name, self.device, self.sides = name, device_name(found.placement.device), sides
        self.models, self.chat_template = found, chat_template
        self._opened = opened
        self.tokenizer = load_tokenizer(found.spec)
        self._encoder = Encoder(self.tokenizer)

    @property
    def encoder(self) -> Encoder:
        """Of the tokenizer."""
        return self._encoder

    def opened(self, side: Side) -> contextlib.AbstractContextManager[Any]:
        """Opens one of the models, in evaluation mode."""
        found: contextlib.AbstractContextManager[Any] = self._opened(side)
        return found

    def prompt_ids(self, request: TextRequest) -> list[int]:
        """Encodes the prompt: a file as in training, or plain text. No text becomes a control token.

        Where all line ends are CRLF, they become LF, as in training; the answer's are LF anyway.

        Raises:
            EliteError: FILL_UNAVAILABLE.
        """
        encoder = self._encoder
        if ends_in_crlf(request.prompt + request.suffix):
            request = structs.replace(
                request, prompt=with_line_feeds(request.prompt), suffix=with_line_feeds(request.suffix)
            )
        if request.suffix:
            if encoder.fim is None:
                raise FILL_UNAVAILABLE(name=self.name)
            if not request.path:
                return encoder.encode_fill(request.prompt, request.suffix)
            at = len(request.prompt)
            [ids] = encoder.encode_middles([(request.path, request.prompt + request.suffix, (at, at))])
            return [int(token) for token in ids[:-1]]
        if request.path:
            [ids] = encoder.encode_documents([(request.path, request.prompt)])
            return [int(token) for token in ids[:-1]]
        return encoder.encode_prompt(request.prompt)

    def write(self, request: TextRequest, side: Side) -> Iterator[str]:
        """Yields the text of one of the models, per token; some parts are empty.

        Raises:
            EliteError: FILL_UNAVAILABLE, SIDE_MISSING, OUT_OF_MEMORY, MODEL_*.
        """
        if side not in self.sides:
            raise SIDE_MISSING(name=self.name, side=side)
        prompt = self.prompt_ids(request)
        sampling = Sampling(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )
        what = f"keys and values of {len(prompt) + request.max_tokens:,} tokens"
        with (
            memory_errors("generation", what, "use --precision nf4, a shorter prompt, or a smaller model"),
            self._opened(side) as model,
        ):
            capacity = len(prompt) + request.max_tokens
            with open_generator(model, capacity=capacity, rows=1, ends=self._encoder.ends) as generator:
                generator.submit(prompt, sampling)
                yield from stream_text(self._encoder.tokenizer, _tokens(generator), prompt)


def _tokens(generator: Generator) -> Iterator[int]:
    """Yields the tokens of a generator's only sequence."""
    while generator.busy:
        for event in generator.step():
            if event.token is not None:
                yield event.token


def open_writer(reference: str, *, device: str = "", precision: str = "", notify: Callable[[str], None]) -> Writer:
    """Loads a run by id, prefix of an id or folder; or a model by name, folder or hub id.

    Args:
        reference: As typed; "" is the newest run.
        device: Replaces the run's, if not "".
        precision: Replaces the run's, if not "".
        notify: Called with messages for the user.

    Raises:
        EliteError: GENERATION_UNKNOWN, RUN_*, MODEL_*, OUT_OF_MEMORY.
    """
    run = _run_named(reference)
    if run is None:
        return _open_model(reference, device or "auto", precision or "auto", notify)
    config = run.load_config()
    found = models_of(run, config)
    require(found.spec.family, "generated")
    if device or precision:
        placement = choose_placement(device or config.model.device, precision or found.placement.precision)
        found = dataclasses.replace(found, placement=placement)
    found = dataclasses.replace(found, layout=writing_layout(found, notify))
    pair = load_pair(found, config, notify=notify, spill=run.path)
    return Writer(run.id, found, lambda side: _side(pair, side), ("base", "tuned"), config.data.chat_template)


@contextlib.contextmanager
def _side(pair: ModelPair, side: Side) -> Iterator[Any]:
    with pair.base() if side == "base" else pair.tuned() as scored, scored.writing() as model:
        yield model


def _open_model(name: str, device: str, precision: str, notify: Callable[[str], None]) -> Writer:
    found = RunModels(
        spec=find_model(name),
        placement=choose_placement(device, precision),
        layout=StepLayout(),
        context=0,
        result=Path(),
    )
    require(found.spec.family, "generated")
    found = dataclasses.replace(found, layout=writing_layout(found, notify))
    model = load_base(found, RunConfig(), notify=notify).eval()
    return Writer(found.spec.name, found, lambda _: writing(model, found.layout, found.placement.device), ("base",))


def _run_named(reference: str) -> RunDirectory | None:
    """Returns the run that a reference means; None where it means a model."""
    if reference.lower() in catalogue():
        return None
    try:
        return find_run(reference or None)
    except EliteError as error:
        if error.kind is not RUN_UNKNOWN or not reference:
            raise
    try:
        find_model(reference, download=False)
    except EliteError as error:
        if error.kind is MODEL_UNKNOWN:
            raise GENERATION_UNKNOWN(reference=reference) from error
    return None
