"""Continuous batching: sequences of different lengths are decoded together, and a row that ends is filled again.

A decoding step reads every weight once, whatever the number of rows. So waiting prompts take the place of sequences
that have ended, and the last row moves into a place that stays empty.

    with open_generator(model, capacity=4096, rows=16, ends=ends) as generator:
        number = generator.submit(prompt, Sampling(max_tokens=100))
        while generator.busy:
            for event in generator.step():      # a server streams these, submits and cancels between steps
                ...
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from engine.generation.decoding_linears import open_linears
from engine.generation.forward import (
    PAGE,
    TILE,
    CachedAttention,
    by_tiles,
    home_of,
    kv_bytes,
    open_forward,
    packed_prompts,
    takes_tiles,
)
from engine.generation.prompt_attention import PromptAttention
from engine.generation.row_step import RowStep
from engine.generation.sampling import Draws, Sampling, choose, generate
from engine.generation.slot_cache import RowStore, SlotCache
from engine.hardware.limits import read_memory
from engine.streaming import attention as streamed_attention
from engine.streaming.decoder import Decoder, refuse_position_dependent_rope

ROWS = 16
"""Sequences that are decoded together unless memory holds fewer."""

_RAM_SHARE = 0.3
"""Share of the free RAM that the KV caches of a CPU may take."""

Reason = Literal["end token", "length", "cancelled"]


class TokenEvent(NamedTuple):
    """What became known of a sequence."""

    sequence: int
    "Number from `submit`."
    token: int | None
    "Next token; None for an end token, and after `cancel`."
    finished: Reason | None
    "Why the sequence ended with this event; None while it continues."


class Generator(Protocol):
    """Generates the text of any number of prompts, with the model's adapter on or off as it was when opened."""

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Adds a prompt, and returns its number.

        Args:
            prompt: Token ids, at least one.
            sampling: Settings. The text depends on them and on the prompt alone, but for rounding.

        Raises:
            ValueError: the prompt and its tokens exceed the capacity.
        """

    def cancel(self, sequence: int) -> None:
        """Ends a sequence; its last event comes with the next `step`. Does nothing for one that has ended."""

    def step(self) -> list[TokenEvent]:
        """Decodes a token of every open sequence, and returns what became known."""

    @property
    def busy(self) -> bool:
        """Whether events are to come."""

    def close(self) -> None:
        """Frees the caches and restores the model."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_generator(
    model: Any, *, capacity: int, rows: int = ROWS, ends: Container[int] = frozenset(), graphs: bool = True
) -> Generator:
    """Opens a generator over a model, which it owns until it is closed.

    Args:
        model: In evaluation mode, its weights on one device.
        capacity: Maximum tokens of a prompt and its text.
        rows: Maximum sequences that are decoded together.
        ends: Tokens that end a text; they are not part of it.
        graphs: Whether decoding steps may be captured as CUDA graphs.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, where rotary tables depend on the total length, which tiles cannot know.
    """
    decoder = Decoder(model) if takes_tiles(model) else None
    # A row's chunk would begin at another place than its neighbour's: chunks are decoded one sequence at a time.
    chunked = decoder is not None and "chunked_attention" in (getattr(decoder.config, "layer_types", None) or ())
    if decoder is not None and not chunked and (found := _rows_that_fit(decoder, capacity, rows)):
        return BatchGenerator(decoder, capacity=capacity, rows=found, ends=ends, graphs=graphs)
    return SerialGenerator(model, capacity=capacity, ends=ends)


def _rows_that_fit(decoder: Decoder, capacity: int, most: int) -> int:
    """Returns the number of rows, halved until they fit beside what is in use; 0 if not even one fits on a GPU."""
    device, size = decoder.embedding.weight.device, kv_bytes(decoder) * capacity
    if device.type == "cuda":
        while most and home_of(size * most, device) != device:
            most //= 2
        return most
    while most > 1 and size * most > _RAM_SHARE * read_memory().available:
        most //= 2
    return most


@dataclass(eq=False)
class _Sequence:
    number: int
    prompt: Sequence[int]
    sampling: Sampling
    draw: Draws
    length: int = 0
    "Tokens in the cache."
    started: int = 0
    "Tokens that are decoded or being decoded."
    told: int = 0
    "Tokens in events."
    finished: bool = False

    @property
    def needs_row(self) -> bool:
        """Whether another step is needed."""
        return not self.finished and self.started < self.sampling.max_tokens


@dataclass(eq=False)
class _Pending:
    """Tokens on their way to the host."""

    sequences: list[_Sequence]
    tokens: Tensor
    copied: torch.cuda.Event | None = field(default=None)

    @classmethod
    def of(cls, sequences: list[_Sequence], tokens: Tensor) -> _Pending:
        if not tokens.is_cuda:
            return cls(sequences, tokens)
        found = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        found.copy_(tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(sequences, found, event)

    def read(self) -> list[int]:
        """Waits for the tokens."""
        if self.copied is not None:
            self.copied.synchronize()
        found: list[int] = self.tokens.tolist()
        return found


class _Numbered:
    """Bookkeeping of a generator: numbers, the queue, and events of cancelled sequences."""

    def __init__(self, capacity: int, ends: Container[int]) -> None:
        self.capacity, self._ends = capacity, ends
        self._numbers = itertools.count()
        self._waiting: deque[_Sequence] = deque()
        self._open: dict[int, _Sequence] = {}
        self._cancelled: list[TokenEvent] = []

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """See Generator."""
        if not prompt:
            raise ValueError("an empty prompt")
        if len(prompt) + sampling.max_tokens > self.capacity:
            raise ValueError(f"{len(prompt) + sampling.max_tokens} tokens in a sequence of {self.capacity}")
        sequence = _Sequence(next(self._numbers), prompt, sampling, Draws(sampling.seed))
        self._open[sequence.number] = sequence
        self._waiting.append(sequence)
        return sequence.number

    def cancel(self, sequence: int) -> None:
        """See Generator."""
        found = self._open.pop(sequence, None)
        if found is not None:
            found.finished = True
            self._cancelled.append(TokenEvent(sequence, None, "cancelled"))

    @property
    def busy(self) -> bool:
        """See Generator."""
        return bool(self._open or self._cancelled)

    def _take_cancelled(self) -> list[TokenEvent]:
        found, self._cancelled = self._cancelled, []
        return found

    def _next_waiting(self) -> _Sequence | None:
        while self._waiting:
            sequence = self._waiting.popleft()
            if not sequence.finished:
                return sequence
        return None

    def _event(self, sequence: _Sequence, token: int) -> TokenEvent:
        """Counts a token of a sequence that has not ended."""
        sequence.told += 1
        reason: Reason | None = None
        if token in self._ends:
            reason = "end token"
        elif sequence.told >= sequence.sampling.max_tokens:
            reason = "length"
        if reason is not None:
            sequence.finished = True
            del self._open[sequence.number]
        return TokenEvent(sequence.number, None if reason == "end token" else token, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See Generator."""
        self._waiting.clear()
        self._open.clear()


class BatchGenerator(_Numbered):
    """A Generator over rows that share each step; for families whose tiles are known to be exact.

    On a GPU the tokens of a step are read while the next step runs. A sequence that ended has then taken part in one
    step more, whose token is dropped.

    Args:
        decoder: The model's decoder.
        capacity: Maximum tokens of a prompt and its text.
        rows: Maximum sequences that are decoded together.
        ends: Tokens that end a text.
        graphs: Whether decoding steps may be captured as CUDA graphs.
        tile: Tokens of a prompt that pass through the model at once.
        page: Most keys in one attention call of a prompt.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        capacity: int,
        rows: int,
        ends: Container[int] = frozenset(),
        graphs: bool = True,
        tile: int = TILE,
        page: int = PAGE,
    ) -> None:
        super().__init__(capacity, ends)
        refuse_position_dependent_rope(decoder.config, capacity)
        streamed_attention.register()
        self._decoder, self._tile, self._page = decoder, tile, page
        self._device = decoder.embedding.weight.device
        self._linears = open_linears(decoder)
        self._cache = SlotCache(rows, capacity, self._device)
        self._step = RowStep(decoder, self._cache, graphs=graphs)
        self._rows: list[_Sequence] = []
        self._pending: deque[_Pending] = deque()
        self._lag = 1 if self._device.type == "cuda" else 0

    @property
    def captures(self) -> bool:
        """Whether decoding steps are, or will be, CUDA graphs."""
        return self._step.graphs

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        """See Generator."""
        self._fill_rows()
        if self._rows and (self._lag or not self._pending):  # without a lag, a first token may already end its text
            self._advance()
        found = self._take_cancelled()
        while len(self._pending) > (self._lag if self._rows else 0):
            found += self._read(self._pending.popleft())
        return found

    def _fill_rows(self) -> None:
        """Gives free rows to waiting prompts; moves the last rows into those that stay free."""
        row, new = 0, []
        while row < self._cache.rows:
            taken = row < len(self._rows)
            if taken and self._rows[row].needs_row:
                row += 1
                continue
            sequence = self._next_waiting()
            if sequence is not None:
                self._rows[row : row + 1] = [sequence]
                sequence.length, sequence.started = len(sequence.prompt), 1
                new.append((row, sequence))
                row += 1
            elif not taken:
                break
            else:
                self._drop_row(row)
        for group in self._groups(new):
            self._prefill(group)

    def _drop_row(self, row: int) -> None:
        last, moved = len(self._rows) - 1, self._rows.pop()
        if row < last:
            self._cache.move(last, row, moved.length)
            for values in (self._step.ids, self._step.positions):
                values[row] = values[last].clone()
            self._rows[row] = moved
        # A free row may be computed with the others: at a place that it has.
        self._step.positions[last] = 0

    def _groups(self, new: Sequence[tuple[int, _Sequence]]) -> Iterator[list[tuple[int, _Sequence]]]:
        """Yields prompts with their rows, as many at a time as one tile takes."""
        group: list[tuple[int, _Sequence]] = []
        for row, sequence in new:
            tokens = sum(len(other.prompt) for _, other in group)
            if group and (tokens + len(sequence.prompt) > self._tile or any(self._decoder.mixers)):
                yield group
                group = []
            group.append((row, sequence))
        if group:
            yield group

    def _prefill(self, group: Sequence[tuple[int, _Sequence]]) -> None:
        rows, sequences = [row for row, _ in group], [sequence for _, sequence in group]
        ids = torch.tensor([token for sequence in sequences for token in sequence.prompt], dtype=torch.long)
        if len(group) > 1:
            starts = [0, *itertools.accumulate(len(sequence.prompt) for sequence in sequences)][:-1]
            attention = PromptAttention(self._decoder, self._cache, rows, starts, len(ids))
            logits = packed_prompts(self._decoder, attention, ids, starts)
        else:
            logits = self._prefill_alone(rows[0], ids)[None]
        samplings = [sequence.sampling for sequence in sequences]
        tokens = choose(logits, samplings, [sequence.draw() for sequence in sequences])
        places = torch.tensor(rows, device=self._device)
        self._step.ids[places] = tokens
        self._step.positions[places] = torch.tensor([s.length for s in sequences], device=self._device)
        self._pending.append(_Pending.of(sequences, tokens))

    def _prefill_alone(self, row: int, ids: Tensor) -> Tensor:
        """Runs a prompt of any length into a row; returns the logits after it, (vocabulary,) fp32."""
        attention = CachedAttention(self._decoder, self._page, lambda layer: RowStore(self._cache, layer, row))
        logits = by_tiles(self._decoder, attention, ids, 0, self._tile)
        for mixer, states in attention.states.items():
            self._cache.keep_states(mixer, states, row)
        return logits

    def _advance(self) -> None:
        rows = [*self._rows]
        if not all(sequence.needs_row for sequence in rows):  # prompts of which one token is wanted
            return
        logits = self._step.run(len(rows), 1 + max(sequence.length for sequence in rows))
        tokens = choose(logits, [sequence.sampling for sequence in rows], [sequence.draw() for sequence in rows])
        self._step.ids[: len(rows)] = tokens
        for sequence in rows:
            sequence.length += 1
            sequence.started += 1
        self._pending.append(_Pending.of(rows, tokens))

    def _read(self, pending: _Pending) -> Iterator[TokenEvent]:
        for sequence, token in zip(pending.sequences, pending.read(), strict=True):
            if not sequence.finished:
                yield self._event(sequence, token)

    def close(self) -> None:
        """See Generator."""
        super().close()
        self._rows.clear()
        self._pending.clear()
        if self._linears is not None:
            self._linears.close()
            self._linears = None
        del self._step, self._cache


class SerialGenerator(_Numbered):
    """A Generator that finishes one sequence before the next.

    For families that go through transformers' own cache, and where not even one KV cache fits on the GPU.
    """

    def __init__(self, model: Any, *, capacity: int, ends: Container[int] = frozenset()) -> None:
        super().__init__(capacity, ends)
        self._model = model
        self._present: tuple[_Sequence, Iterator[int]] | None = None

    def step(self) -> list[TokenEvent]:
        """See Generator."""
        found = self._take_cancelled()
        if self._present is None or self._present[0].finished:
            sequence = self._next_waiting()
            if sequence is None:
                return found
            forward = open_forward(self._model, len(sequence.prompt) + sequence.sampling.max_tokens)
            self._present = sequence, generate(forward, sequence.prompt, sequence.sampling)
        sequence, tokens = self._present
        found.append(self._event(sequence, next(tokens)))
        if sequence.finished:
            self._present = None
        return found

    def close(self) -> None:
        """See Generator."""
        super().close()
        self._present = None


def write_together(
    generator: Generator, prompts: Sequence[Sequence[int]], sampling: Sampling, take: Callable[[int, int], bool]
) -> None:
    """Generates the text after each prompt.

    Args:
        generator: Has no other sequence open.
        prompts: Token ids of each, at least one.
        sampling: Settings of all.
        take: Called with a prompt's index and its next token; False ends that text.
    """
    index = {generator.submit(prompt, sampling): i for i, prompt in enumerate(prompts)}
    while generator.busy:
        for sequence, token, _ in generator.step():
            if token is not None and not take(index[sequence], token):
                generator.cancel(sequence)
