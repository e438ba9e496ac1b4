"""WizardDesk: what the wizard's rooms ask of the engine, each question with the state that it is made of.

The App owns it. Questions go out through EngineLink; the answers come back as `Answered` and end up in the
attribute of AppState that the question names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elite_tui.what_if import WhatIf, key_of

if TYPE_CHECKING:
    from textual.timer import Timer

    from elite_tui.app import EliteApp
    from elite_tui.plans import Plans

ASK_DELAY = 0.4
"Seconds after the last key press until the engine is asked again."


class WizardDesk:
    """Questions of the wizard's rooms."""

    def __init__(self, app: EliteApp) -> None:
        self._app = app
        self._timer: Timer | None = None

    # --- the tier room: another machine, other models, what would fit ----------------------------------------

    def type_what_if(self, name: str, text: str) -> None:
        """A field of the what-if machine was typed into."""
        app = self._app
        app.state.draft.keep(key_of(name), text.strip())
        app.save_soon()
        if self._timer is not None:
            self._timer.stop()
        self._timer = app.set_timer(ASK_DELAY, self.ask_what_if)
        app.tell("what_if")

    def ask_what_if(self) -> None:
        """Plans the tiers for the what-if machine, if there is one."""
        app, state = self._app, self._app.state
        what_if, machine = WhatIf.of(state.draft), state.machine.value
        if not what_if.active or machine is None or state.draft.problems():
            state.what_if.settle_nothing()
            app.tell("what_if")
            return
        mapping, tokens = state.draft.mapping(), state.tokens
        state.what_if.ask()
        app.tell("what_if")
        app.link.ask("what_if", lambda: app.link.engine.plan_tiers(what_if.apply(machine), mapping, tokens))

    def ask_models(self) -> None:
        """What the machine that is planned for can do with each model of the catalogue."""
        app, state = self._app, self._app.state
        plans = state.shown_plans
        if plans is None or state.draft.problems():
            return
        mapping, tokens, machine = state.draft.mapping(), state.tokens, plans.whole_machine
        state.models.ask()
        app.tell("models")
        app.link.ask("models", lambda: app.link.engine.outlooks(mapping, machine, tokens))

    def ask_ways(self, plans: Plans, context: int) -> None:
        """What would make a context fit."""
        app, state = self._app, self._app.state
        mapping, tokens = state.draft.mapping(), state.tokens
        state.ways.ask()
        app.link.ask("ways", lambda: app.link.engine.ways_to_fit(mapping, plans.whole_machine, tokens, context))
