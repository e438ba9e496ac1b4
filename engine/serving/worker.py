"""The thread that owns the models: takes requests from a queue and decodes those of one model together.

A generator has the adapter on or off as it was when opened. So the two models take turns: requests are taken in the
order that they came, and one for the other model waits until those before it have ended.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import EliteError
from engine.generation.batched import Generator, TokenEvent, open_generator
from engine.generation.request import Side
from engine.generation.sampling import Sampling
from engine.runs.crash_log import internal_error
from engine.steps.failures import memory_errors

if TYPE_CHECKING:
    from engine.generation.writer import Writer

MOST_WAITING = 256
"""Requests that may be unanswered at a time."""


class StoppedError(Exception):
    """The server ends."""


class BusyError(Exception):
    """Too many requests wait."""


@dataclass(eq=False)
class Job:
    """A request on its way through the worker.

    Attributes:
        side: The model that answers.
        prompt: Token ids, at least one.
        sampling: Settings.
        notify: Called in the worker's thread with each event, and with the exception that ends the job.
    """

    side: Side
    prompt: Sequence[int]
    sampling: Sampling
    notify: Callable[[TokenEvent | Exception], None]
    ended: bool = field(default=False, init=False)


class Worker:
    """Answers jobs until it is closed.

    Args:
        writer: The models.
        capacity: Maximum tokens of a prompt and its text.
        rows: Maximum requests that are decoded together.
        report: Called with a line for the user where a job fails.
    """

    def __init__(self, writer: Writer, *, capacity: int, rows: int, report: Callable[[str], None]) -> None:
        self.capacity = capacity
        self._writer, self._rows, self._report = writer, rows, report
        self._inbox: queue.SimpleQueue[tuple[Job, bool] | None] = queue.SimpleQueue()
        self._unanswered = 0
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._opened = contextlib.ExitStack()
        self._generator: Generator | None = None
        self._side: Side | None = None
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def unanswered(self) -> int:
        """Number of jobs that are waiting or running."""
        return self._unanswered

    def submit(self, job: Job) -> None:
        """Adds a job, from any thread.

        Raises:
            BusyError: MOST_WAITING are unanswered.
            StoppedError: the worker is being closed.
        """
        if self._stopping.is_set():
            raise StoppedError
        with self._counting:
            if self._unanswered >= MOST_WAITING:
                raise BusyError
            self._unanswered += 1
        self._inbox.put((job, True))

    def cancel(self, job: Job) -> None:
        """Ends a job, from any thread. It hears no more. Does nothing for one that has ended."""
        self._inbox.put((job, False))

    def stop(self) -> None:
        """Ends all jobs soon; may be called in a signal handler."""
        self._stopping.set()
        self._inbox.put(None)

    def close(self) -> None:
        """Ends all jobs, frees the models, and waits for that."""
        self.stop()
        self._thread.join()

    # --- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._receive()
                if not self._stopping.is_set():
                    self._admit()
                    self._decode()
            except Exception as error:  # one job's failure leaves the server up
                self._fail(error if isinstance(error, EliteError) else internal_error(error))
        self._end_all(StoppedError())
        # What was submitted while the flag was set.
        self._receive()
        self._end_all(StoppedError())

    def _receive(self) -> None:
        """Takes what has come; waits where there is nothing else to do."""
        idle = not self._running and not self._waiting
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._inbox.get(block=idle and not self._stopping.is_set())
                idle = False
                if item is not None:
                    self._take(*item)

    def _take(self, job: Job, new: bool) -> None:
        if new:
            self._waiting.append(job)
            return
        if job.ended:
            return
        for number, running in self._running.items():
            if running is job and self._generator is not None:
                self._generator.cancel(number)
        self._waiting = deque(other for other in self._waiting if other is not job)
        self._end(job)

    def _admit(self) -> None:
        """Gives the generator the first jobs that are for its model; changes the model once it has none."""
        while self._waiting:
            job = self._waiting[0]
            if job.side != self._side or self._generator is None:
                if self._generator is not None and self._generator.busy:
                    return
                self._open(job.side)
            assert self._generator is not None
            self._running[self._generator.submit(job.prompt, job.sampling)] = self._waiting.popleft()

    def _open(self, side: Side) -> None:
        self._close_model()
        what = f"keys and values of {self.capacity:,} tokens"
        with memory_errors("generation", what, "use --precision nf4, or a smaller --context"):
            model = self._opened.enter_context(self._writer.opened(side))
            ends = self._writer.encoder.ends
            generator = open_generator(model, capacity=self.capacity, rows=self._rows, ends=ends)
            self._generator, self._side = self._opened.enter_context(generator), side

    def _close_model(self) -> None:
        self._generator = self._side = None
        self._opened.close()

    def _decode(self) -> None:
        if self._generator is None or not self._generator.busy:
            return
        what = f"keys and values of {self.capacity:,} tokens"
        with memory_errors("generation", what, "use --precision nf4, a smaller --context, or fewer --rows"):
            events = self._generator.step()
        for event in events:
            job = self._running[event.sequence]
            if event.finished is not None:
                del self._running[event.sequence]
            if not job.ended:
                job.notify(event)
                if event.finished is not None:
                    self._end(job)

    def _fail(self, error: EliteError) -> None:
        """Ends the jobs that share the generator, or the one that could not be started."""
        self._report(f"{error.message}; {error.remedy}")
        jobs = [*self._running.values()] or list(itertools.islice(self._waiting, 1))
        self._running.clear()
        self._waiting = deque(job for job in self._waiting if job not in jobs)
        for job in jobs:
            self._end(job, error)
        try:
            self._close_model()
        except Exception as problem:  # after a failure, closing may fail too
            internal_error(problem)

    def _end_all(self, error: Exception) -> None:
        jobs = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        for job in jobs:
            self._end(job, error)
        with contextlib.suppress(Exception):
            self._close_model()

    def _end(self, job: Job, error: Exception | None = None) -> None:
        if job.ended:
            return
        job.ended = True
        with self._counting:
            self._unanswered -= 1
        if error is not None:
            job.notify(error)
