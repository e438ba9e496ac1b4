"""WizardDesk: what the wizard's rooms ask of the engine, each question with the state that it is made of.

The App owns it. Questions go out through EngineLink; the answers come back as `Answered` and end up in the
attribute of AppState that the question names.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from elite_tui import messages
from elite_tui.fetched import Fetched
from elite_tui.state import Reading
from elite_tui.trouble import record_trouble
from elite_tui.wizard.presets import Preset, apply
from elite_tui.wizard.what_if import WhatIf, key_of
from engine import errors
from engine.config import field_spec, from_mapping, to_mapping
from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.timer import Timer

    from elite_tui.app import EliteApp
    from elite_tui.link.process import EngineProcess
    from elite_tui.wizard.plans import Plans
    from engine.config import RunConfig
    from engine.plan.optimizations import OptimizationState
    from engine.plan.planner import TierPlan

ASK_DELAY = 0.4
"Seconds after the last key press until the engine is asked again."


class WizardDesk:
    """Questions of the wizard's rooms."""

    def __init__(self, app: EliteApp) -> None:
        self._app = app
        self._timer: Timer | None = None
        self._process: EngineProcess | None = None
        "The measurement that was begun last."
        self._reading: threading.Event | None = None
        "Set to give up the reading that is under way."
        self._reading_timer: Timer | None = None
        self._models_of: tuple[object, ...] | None = None
        "What the catalogue's tiers were planned for last."

    def close(self) -> None:
        """Ends what runs on behalf of the rooms."""
        self.stop_measuring()
        self.stop_reading()

    # --- measurements of this machine: one at a time ---------------------------------------------------------

    def run_profile(self) -> None:
        """Measures the machine; the tiers are planned again with what was found."""
        self._measure("profile", "profile")

    def run_probe(self, plan: TierPlan) -> None:
        """Runs the worst part of a tier's plan on this machine; later plans are corrected by it."""
        run, tier = self._config(), plan.tier
        if tier is None:
            return
        self._measure(
            "probe",
            *("probe", "--tier", str(tier), "--model", run.model.name, "--precision", run.model.precision),
            *("--device", run.model.device, "--step", run.training.step, "--rank", str(run.lora.rank)),
            *("--output", run.output.directory),
        )

    def _measure(self, what: str, *arguments: str) -> None:
        app = self._app
        self.stop_measuring()
        process = self._process = app.link.engine.measurement(*arguments)
        app.state.measuring = ""
        fetched: Fetched[dict[str, Any]] = getattr(app.state, what)
        fetched.ask()
        app.tell(what)

        def tell(line: str) -> None:
            app.post_message(messages.Progressed("measuring", line))

        app.link.ask(what, lambda: process.run(tell))

    def stop_measuring(self) -> None:
        """Ends a measurement that is under way."""
        if self._process is not None:
            self._process.stop()

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
        others = {section: fields for section, fields in mapping.items() if section != "model"}
        precision = mapping.get("model", {}).get("precision")
        asked = (others, precision, tokens, machine)
        if asked == self._models_of and (state.models.value is not None or state.models.loading):
            return  # seconds of planning, and nothing has changed but the model
        self._models_of = asked
        state.models.ask()
        app.tell("models")
        app.link.ask("models", lambda: app.link.engine.outlooks(mapping, machine, tokens))

    # --- the options room: switches and presets --------------------------------------------------------------

    def switch(self, name: str) -> None:
        """Switches one optimisation on where it is off, and off where it is on.

        Raises:
            EliteError: CONFIG_INVALID for the draft; OPTIMIZATION_CONFLICT or _UNAVAILABLE with the reason.
        """
        from engine.plan.optimizations import find_optimization, is_switched_on, toggle

        config = self._config()
        state = next((state for state in self._states() if state.id == name), None)
        on = state.state == "on" if state is not None else False
        if state is not None and state.state == "unavailable":
            on = is_switched_on(config, find_optimization(name))
            if not on:
                raise errors.OPTIMIZATION_UNAVAILABLE(
                    id=name, reason=state.reason, remedy="the plan goes on without it"
                )
        self._take(config, toggle(config, name, on=not on))

    def unswitch(self, name: str) -> None:
        """Leaves one optimisation to its default."""
        from engine.plan.optimizations import find_optimization

        self._set({path: field_spec(path).default for path in find_optimization(name).switch_off})

    def apply_preset(self, preset: Preset) -> Mapping[str, str]:
        """Switches what a preset says; returns what cannot be had here, with the reason.

        Raises:
            EliteError: CONFIG_INVALID for the draft.
        """
        plans = self._app.state.tiers.value
        config = self._config()
        machine = plans.machine if plans is not None else None
        if machine is None:
            return {}
        applied = apply(preset, config, machine, {state.id: state for state in self._states()})
        self._take(config, applied.config)
        return applied.left_out

    def _config(self) -> RunConfig:
        return from_mapping(self._app.state.draft.mapping(), source="form")

    def _states(self) -> Sequence[OptimizationState]:
        plans = self._app.state.tiers.value
        return plans.states if plans is not None else ()

    def _take(self, before: RunConfig, after: RunConfig) -> None:
        """Writes the fields in which two configurations differ into the draft."""
        old, new = to_mapping(before), to_mapping(after)
        changed = {
            f"{section}.{name}": value
            for section, fields in new.items()
            for name, value in fields.items()
            if value != old[section][name]
        }
        self._set(changed)

    def _set(self, values: Mapping[str, Any]) -> None:
        app = self._app
        for path, value in values.items():
            app.state.draft.set(path, value)
        for path in values:
            app.draft_changed(path)
        if values:
            app.ask_tiers()

    # --- the data room: the dataset --------------------------------------------------------------------------

    def draft_changed(self, path: str) -> None:
        """A dataset that no longer is the draft's is given up, and read anew while its room is on screen."""
        app = self._app
        if not (path.startswith("data.") or path == "model.name"):
            return
        self.stop_reading()
        app.state.data.settle_nothing()
        app.tell("data")
        if app.room == "data":
            if self._reading_timer is not None:
                self._reading_timer.stop()
            self._reading_timer = app.set_timer(ASK_DELAY, self.read_data)

    def read_data(self) -> None:
        """Builds the dataset of the draft, or finds it in the store."""
        app, state = self._app, self._app.state
        self.stop_reading()
        if state.draft.problems():
            return
        stopped = self._reading = threading.Event()
        mapping = state.draft.mapping()
        state.reading = None
        state.data.ask()
        app.tell("data")

        def progress(done: int, total: int, what: str) -> None:
            if stopped.is_set():
                raise errors.READING_STOPPED()
            share = done / total if total else 0.0
            app.post_message(messages.Progressed("reading", Reading(share, f"{done:,} of {total:,} {what}")))

        app.link.ask("data", lambda: app.link.engine.preview_data(mapping, progress))

    def stop_reading(self) -> None:
        """Gives up a reading that is under way, at its next sign of progress."""
        if self._reading is not None:
            self._reading.set()

    # --- the review: pre-flight rows -------------------------------------------------------------------------

    def examine(self) -> None:
        """Makes the pre-flight rows of the draft, one after the other."""
        app = self._app
        if app.state.draft.problems():
            return
        number = app.state.checks.begin()
        app.tell("checks")
        # Not a worker: the last rows wait for a child process, and leaving the app must not wait for them.
        arguments = (number, app.state.draft.mapping())
        threading.Thread(target=self._examine, args=arguments, name="examine", daemon=True).start()

    def _examine(self, number: int, mapping: dict[str, dict[str, Any]]) -> None:
        app = self._app
        error: EliteError | None = None
        try:
            app.post_message(messages.CheckMade(number, names=app.link.engine.check_names()))
            for row in app.link.engine.examine(mapping):
                if number != app.state.checks.number:
                    return
                app.post_message(messages.CheckMade(number, row))
        except EliteError as problem:
            error = problem
        except Exception as problem:
            error = errors.INTERNAL(kind=type(problem).__name__, problem=problem, log=record_trouble(problem) or "this")
        app.post_message(messages.CheckMade(number, error=error))

    def check_made(self, message: messages.CheckMade) -> None:
        """Takes in a row, unless the draft has changed since."""
        checks = self._app.state.checks
        if message.number != checks.number:
            return
        if message.names:
            checks.names = tuple(message.names)
        elif message.row is not None:
            checks.rows.append(message.row)
        else:
            checks.running, checks.error = False, message.error
        self._app.tell("checks")

    # --- a tier that does not fit ----------------------------------------------------------------------------

    def ask_ways(self, plans: Plans, context: int) -> None:
        """What would make a context fit."""
        app, state = self._app, self._app.state
        mapping, tokens = state.draft.mapping(), state.tokens
        state.ways.ask()
        app.link.ask("ways", lambda: app.link.engine.ways_to_fit(mapping, plans.whole_machine, tokens, context))
