"""Sends the wizard screens' requests to the engine, with the state that each depends on.

Requests go out through EngineClient. Their answers come back as `Answered` and fill the requested part of the
state.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from elite_tui import messages
from elite_tui.client.workers import existing_folder
from elite_tui.host import Debounce
from elite_tui.state_part import StatePart
from elite_tui.wizard.facts import Reading
from elite_tui.wizard.what_if import WhatIf
from engine.errors import EliteError
from engine.errors.data import READING_STOPPED
from engine.runs.crash_log import internal_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from elite_tui.client.process import EngineProcess
    from elite_tui.client.workers import EngineClient
    from elite_tui.host import Host
    from elite_tui.remote_data import RemoteData
    from elite_tui.state import AppState
    from elite_tui.wizard.plans import Plans
    from elite_tui.wizard.remedies import ModelOutlook
    from engine.models.spec import ModelSpec
    from engine.plan.planner import TierPlan

ASK_DELAY = 0.4
"Seconds after the last key press until the engine is asked again."
REPOSITORY_FIELDS = frozenset({"data.repositories", "data.max_file_bytes"})
PLAN_SECTIONS = frozenset({"model", "lora", "training", "checkpoint"})
"Sections on which the plan, its costs and the optimisations depend."
PLAN_FIELDS = frozenset({"data.held_out_fraction", "data.near_duplicates"})


class WizardController:
    """Controller of the wizard's screens."""

    def __init__(self, host: Host, state: AppState, client: EngineClient) -> None:
        self._host = host
        self._state = state
        self._client = client
        self._planning = Debounce(host, ASK_DELAY)
        self._supposing = Debounce(host, ASK_DELAY)
        self._rereading = Debounce(host, ASK_DELAY)
        self._process: EngineProcess | None = None
        "The latest measurement."
        self._reading: threading.Event | None = None
        "Set to stop the current reading."
        self._models_of: tuple[object, ...] | None = None
        "Inputs of the latest plan of the catalogue's tiers."

    def begin(self) -> None:
        """Takes the inventory and reads the repositories on the first call."""
        if self._state.machine.value is None and not self._state.machine.loading:
            self.ask_machine()
            self.ask_repository()

    def close(self) -> None:
        """Ends measurements and readings."""
        self.stop_measuring()
        self.stop_reading()

    def answered(self, part: StatePart) -> None:
        """Sends the requests that depend on an answer."""
        state = self._state
        if part in (StatePart.REPOSITORY, StatePart.MACHINE):
            self.ask_tiers()
        elif any(part is measured.part and measured.value is not None for measured in (state.profile, state.probe)):
            self.ask_machine()

    def draft_changed(self, path: str) -> None:
        """Reacts to a changed field: drops outdated results, and asks again once the typing pauses."""
        self._state.preflight.settle_nothing()
        self._state.checks.forget()
        if path.startswith("data.") or path == "model.name":
            self._forget_data()
        if path in REPOSITORY_FIELDS:
            self._planning.ask(self.ask_repository)
        elif path in PLAN_FIELDS or path.partition(".")[0] in PLAN_SECTIONS:
            self._planning.ask(self.ask_tiers)

    # --- the repository, the machine, and what fits ----------------------------------------------------------

    def ask_repository(self) -> None:
        """Reads the draft's repositories."""
        draft, repository, engine = self._state.draft, self._state.repository, self._client.engine
        if draft.problems().keys() & REPOSITORY_FIELDS:
            repository.settle_nothing()
            self._host.tell(repository.part)
            return
        folders, largest = list(draft.get("data.repositories")), draft.get("data.max_file_bytes")
        self._client.ask(repository, lambda: engine.read_repositories(folders, largest))

    def ask_machine(self) -> None:
        """Takes the inventory."""
        disk = self.disk_path
        self._client.ask(self._state.machine, lambda: self._client.engine.find_machine(disk))

    @property
    def disk_path(self) -> Path:
        """The run's output folder, or its nearest existing parent."""
        return existing_folder(str(self._state.draft.get("output.directory")))

    def ask_tiers(self) -> None:
        """Plans the tiers once the machine is known and the draft is valid."""
        state = self._state
        machine = state.machine.value
        if machine is None or state.draft.problems():
            return
        mapping, tokens = state.draft.mapping(), state.tokens
        self._client.ask(state.tiers, lambda: self._client.engine.plan_tiers(machine, mapping, tokens))
        self.ask_what_if()

    def ask_preflight(self) -> None:
        """Checks all that can be checked before a run, if the draft is valid."""
        if self._state.draft.problems():
            return
        mapping = self._state.draft.mapping()
        self._client.ask(self._state.preflight, lambda: self._client.engine.check(mapping))

    def models(self) -> Mapping[str, ModelSpec]:
        """Returns the model catalogue."""
        return self._client.engine.models()

    # --- measurements of this machine, one at a time ---------------------------------------------------------

    def run_profile(self) -> None:
        """Measures the machine; the tiers are planned again with the results."""
        self._measure(self._state.profile, "profile")

    def run_probe(self, plan: TierPlan) -> None:
        """Runs the worst part of a tier's plan on this machine; its results correct later plans."""
        run, tier = self._state.draft.run_config(), plan.tier
        if tier is None:
            return
        self._measure(
            self._state.probe,
            *("probe", "--tier", str(tier), "--model", run.model.name, "--precision", run.model.precision),
            *("--device", run.model.device, "--step", run.training.step, "--rank", str(run.lora.rank)),
            *("--output", run.output.directory),
        )

    def _measure(self, fetched: RemoteData[dict[str, Any]], *arguments: str) -> None:
        self.stop_measuring()
        process = self._process = self._client.engine.measurement(*arguments)
        self._state.measuring = ""

        def tell(line: str) -> None:
            self._host.post_message(messages.MeasuringProgressed(line))

        self._client.ask(fetched, lambda: process.run(tell))

    def stop_measuring(self) -> None:
        """Stops the current measurement."""
        if self._process is not None:
            self._process.stop()

    # --- the tier screen: what-if machine, models, remedies --------------------------------------------------

    def what_if_typed(self) -> None:
        """Plans for the what-if machine once the typing pauses."""
        self._supposing.ask(self.ask_what_if)
        self._host.tell(StatePart.WHAT_IF)

    def ask_what_if(self) -> None:
        """Plans the tiers of the what-if machine, if there is one."""
        state = self._state
        what_if, machine = WhatIf.of(state.draft), state.machine.value
        if not what_if.active or machine is None or state.draft.problems():
            state.what_if.settle_nothing()
            self._host.tell(StatePart.WHAT_IF)
            return
        mapping, tokens = state.draft.mapping(), state.tokens
        self._client.ask(state.what_if, lambda: self._client.engine.plan_tiers(what_if.apply(machine), mapping, tokens))

    def ask_models(self) -> None:
        """Plans the tiers of each model of the catalogue on the shown machine."""
        state = self._state
        plans = state.shown_plans
        if plans is None or state.draft.problems():
            return
        mapping, tokens, machine = state.draft.mapping(), state.tokens, plans.whole_machine
        others = {section: fields for section, fields in mapping.items() if section != "model"}
        precision = mapping.get("model", {}).get("precision")
        asked = (others, precision, tokens, machine)
        if asked == self._models_of and (state.models.value is not None or state.models.loading):
            return  # seconds of planning, and only the model changed
        self._models_of = asked
        state.planned_models.clear()

        def progress(outlook: ModelOutlook) -> None:
            self._host.post_message(messages.ModelPlanned(asked, outlook))

        self._client.ask(state.models, lambda: self._client.engine.outlooks(mapping, machine, tokens, progress))

    def model_planned(self, message: messages.ModelPlanned) -> None:
        """Adds a model's tiers, unless they are of an older request."""
        if message.asked is self._models_of:
            self._state.planned_models[message.outlook.spec.name] = message.outlook
            self._host.tell(StatePart.MODELS)

    # --- the data screen: the dataset ------------------------------------------------------------------------

    def _forget_data(self) -> None:
        """Drops an outdated dataset, and reads again if the data screen is shown."""
        self.stop_reading()
        self._state.data.settle_nothing()
        self._host.tell(StatePart.DATA)
        if self._host.screen_name == "data":
            self._rereading.ask(self.read_data)

    def read_data(self) -> None:
        """Builds the draft's dataset, or loads it from the store."""
        state = self._state
        self.stop_reading()
        if state.draft.problems():
            return
        stopped = self._reading = threading.Event()
        mapping = state.draft.mapping()
        state.reading = None

        def progress(done: int, total: int, what: str) -> None:
            if stopped.is_set():
                raise READING_STOPPED()
            share = done / total if total else 0.0
            self._host.post_message(messages.ReadingProgressed(Reading(share, f"{done:,} of {total:,} {what}")))

        self._client.ask(state.data, lambda: self._client.engine.preview_data(mapping, progress))

    def stop_reading(self) -> None:
        """Stops the current reading at its next progress report."""
        if self._reading is not None:
            self._reading.set()

    # --- the review: pre-flight rows -------------------------------------------------------------------------

    def examine(self) -> None:
        """Runs the draft's pre-flight checks one after the other."""
        state = self._state
        if state.draft.problems():
            return
        number = state.checks.begin()
        self._host.tell(StatePart.CHECKS)
        # Not a worker: the last rows wait for a child process, and leaving the app must not wait for them.
        arguments = (number, state.draft.mapping())
        threading.Thread(target=self._examine, args=arguments, name="examine", daemon=True).start()

    def _examine(self, number: int, mapping: dict[str, dict[str, Any]]) -> None:
        post, engine = self._host.post_message, self._client.engine
        error: EliteError | None = None
        try:
            post(messages.CheckMade(number, names=engine.check_names()))
            for row in engine.examine(mapping):
                if number != self._state.checks.number:
                    return
                post(messages.CheckMade(number, row))
        except EliteError as problem:
            error = problem
        except Exception as problem:
            error = internal_error(problem)
        post(messages.CheckMade(number, error=error))

    def check_made(self, message: messages.CheckMade) -> None:
        """Adds a row, unless it is of an older examination."""
        checks = self._state.checks
        if message.number != checks.number:
            return
        if message.names:
            checks.names = tuple(message.names)
        elif message.row is not None:
            checks.rows.append(message.row)
        else:
            checks.running, checks.error = False, message.error
        self._host.tell(StatePart.CHECKS)

    # --- a tier that does not fit ----------------------------------------------------------------------------

    def ask_ways(self, plans: Plans, context: int) -> None:
        """Finds the changes with which a context fits."""
        state = self._state
        mapping, tokens = state.draft.mapping(), state.tokens
        engine = self._client.engine
        self._client.ask(state.ways, lambda: engine.ways_to_fit(mapping, plans.whole_machine, tokens, context))
