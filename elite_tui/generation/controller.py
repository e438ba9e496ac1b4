"""Handles the requests of the generate screen and owns the process that answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elite_tui import messages
from elite_tui.generation.answers import request_of
from elite_tui.state_part import StatePart
from engine.errors import EliteError

if TYPE_CHECKING:
    from elite_tui.client.calls import Engine
    from elite_tui.generation.answers import Generation
    from elite_tui.generation.process import GenerationProcess
    from elite_tui.host import Host


class GenerationController:
    """Controller of the generate screen."""

    def __init__(self, host: Host, state: Generation, engine: Engine) -> None:
        self._host = host
        self._state = state
        self._engine = engine
        self._process: GenerationProcess | None = None
        self._session = 0
        "Number of the current process; events of earlier ones are ignored."

    def write(self) -> None:
        """Sends the request in the state; starts the process on the first call."""
        state = self._state
        if not state.reference or state.busy:
            return
        try:
            request = request_of(state)
        except EliteError as error:
            state.problem = str(error)
            self._host.tell(StatePart.GENERATION)
            return
        running = self._process is not None
        if self._process is None:
            self._session += 1
            session = self._session

            def tell(event: dict[str, Any]) -> None:
                self._host.post_message(messages.GenerationSaid(session, event))

            self._process = self._engine.generation(state.reference, tell)
        self._process.ask({"id": state.asked(running=running), **request})
        self._host.tell(StatePart.GENERATION)

    def stop(self) -> None:
        """Stops the current answer, or the process while the models are still loading."""
        if self._process is None:
            return
        if self._state.status == "loading":
            self.close()
        else:
            self._process.stop()

    def close(self) -> None:
        """Ends the process and frees the models."""
        if self._process is not None:
            self._process.close()
            self._process = None
            self._state.status = "closed"
            self._host.tell(StatePart.GENERATION)

    def heard(self, message: messages.GenerationSaid) -> None:
        """Folds an event of the process into the state."""
        if message.session != self._session or self._process is None:
            return
        self._state.hear(message.event)
        if message.event.get("event") == "ended":
            self._process = None
        self._host.tell(StatePart.GENERATION)
