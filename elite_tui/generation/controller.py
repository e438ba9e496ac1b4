"""GenerationController: what the generate room asks of a run's models, and the process that answers."""

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
    """Questions of the generate room."""

    def __init__(self, host: Host, state: Generation, engine: Engine) -> None:
        self._host = host
        self._state = state
        self._engine = engine
        self._process: GenerationProcess | None = None
        self._session = 0
        "Of the process: what an earlier one still says is passed over."

    def write(self) -> None:
        """Asks for what the state holds; the first time it starts the process."""
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
        """Ends the answer under way; while the models are still loading, the process."""
        if self._process is None:
            return
        if self._state.status == "loading":
            self.close()
        else:
            self._process.stop()

    def close(self) -> None:
        """Lets the models go."""
        if self._process is not None:
            self._process.close()
            self._process = None
            self._state.status = "closed"
            self._host.tell(StatePart.GENERATION)

    def heard(self, message: messages.GenerationSaid) -> None:
        """The process had something to say."""
        if message.session != self._session or self._process is None:
            return
        self._state.hear(message.event)
        if message.event.get("event") == "ended":
            self._process = None
        self._host.tell(StatePart.GENERATION)
