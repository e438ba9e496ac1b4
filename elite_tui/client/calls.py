"""Wraps the app's blocking calls into the engine; each imports its modules on first use.

Called from worker threads only. Tests replace single methods to show states that a machine cannot be brought
into at will.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EliteError
from engine.home_folder import expand_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from elite_tui.client.process import EngineProcess
    from elite_tui.generation.process import GenerationProcess
    from elite_tui.runs.comparison import Comparison
    from elite_tui.runs.report import RunReport
    from elite_tui.wizard.facts import RepositoryFacts
    from elite_tui.wizard.plans import Plans
    from elite_tui.wizard.remedies import ModelOutlook, WaysToFit
    from engine.config import RunConfig
    from engine.data.report import DataReport
    from engine.hardware.machine import Machine
    from engine.hardware.telemetry import Sampler, Snapshot
    from engine.launch.doctor import Check
    from engine.launch.handle import RunHandle
    from engine.models.spec import ModelSpec
    from engine.runs.run_summary import RunSummary


class Engine:
    """The engine as the app sees it. Every method may raise EliteError."""

    def __init__(self, *, simulate: str | None = None) -> None:
        self._simulate = simulate
        self._sampler: Sampler | None = None

    def read_repositories(self, repositories: Sequence[str], max_file_bytes: int) -> RepositoryFacts:
        """Counts files, languages and estimated tokens of the repositories."""
        from elite_tui.wizard.facts import facts_of
        from engine.data.collect import collect, estimate_tokens

        collection = collect([expand_home(path) for path in repositories], max_file_bytes=max_file_bytes)
        return facts_of(collection, estimate_tokens(collection))

    def find_machine(self, disk_path: Path) -> Machine:
        """Returns this machine, or the one that --simulate names."""
        from engine.hardware.cards import find_card, simulate
        from engine.hardware.inventory import take_inventory

        machine = take_inventory(disk_path)
        if self._simulate is None:
            return machine
        return simulate(
            find_card(self._simulate),
            ram_bytes=machine.ram_total,
            disk_bytes=machine.disk_free,
            cpu_cores=machine.cpu_cores,
        )

    def models(self) -> dict[str, ModelSpec]:
        """Returns the model catalogue by name."""
        from engine.models.catalogue import catalogue, find_model

        return {name: find_model(name) for name in catalogue()}  # takes families that are not listed into the registry

    def plan_tiers(self, machine: Machine, mapping: dict[str, dict[str, Any]], tokens: int | None) -> Plans:
        """Plans the tier table for a machine and a draft's values, and the tier that a run of the draft would use."""
        from elite_tui.wizard.plans import Plans, with_planned_effects
        from engine.config import from_mapping
        from engine.models.catalogue import find_model
        from engine.plan.choice import choose_plan, request_of_run
        from engine.plan.optimization_states import states
        from engine.plan.planner import tier_table
        from engine.plan.search import Budget

        config = from_mapping(mapping, source="form")
        spec = find_model(config.model.name)
        planning = request_of_run(config, machine, spec, tokens)
        table = tier_table(planning)
        try:
            choice, refusal = choose_plan(config, machine, spec, tokens, table=table), None
        except EliteError as error:
            choice, refusal = None, error
        return Plans(
            config=config,
            spec=spec,
            machine=planning.machine,
            whole_machine=machine,
            usable=Budget.of(planning.machine),
            table=table,
            choice=choice,
            refusal=refusal,
            states=with_planned_effects(states(config, machine, spec, choice), config, machine, spec, choice),
        )

    def outlooks(
        self,
        mapping: dict[str, dict[str, Any]],
        machine: Machine,
        tokens: int | None,
        progress: Callable[[ModelOutlook], None],
    ) -> Sequence[ModelOutlook]:
        """Plans the tiers of each model of the catalogue on a machine; passes each to `progress` as it is planned."""
        from elite_tui.wizard.remedies import outlooks
        from engine.config import from_mapping

        config = from_mapping(mapping, source="form")
        return outlooks(config, machine, tuple(self.models().values()), tokens, progress)

    def ways_to_fit(
        self, mapping: dict[str, dict[str, Any]], machine: Machine, tokens: int | None, context: int
    ) -> WaysToFit:
        """Finds the changes with which a context fits a machine."""
        from elite_tui.wizard.remedies import ways_to_fit
        from engine.config import from_mapping
        from engine.models.catalogue import find_model

        config = from_mapping(mapping, source="form")
        spec = find_model(config.model.name)
        return ways_to_fit(config, machine, spec, tuple(self.models().values()), tokens, context)

    def check(self, mapping: dict[str, dict[str, Any]]) -> RunConfig:
        """Returns a run's configuration after all checks that are possible before the start."""
        from engine.config import from_mapping
        from engine.launch.preflight import check

        return check(from_mapping(mapping, source="form"))

    def preview_data(self, mapping: dict[str, dict[str, Any]], progress: Callable[[int, int, str], None]) -> DataReport:
        """Builds the dataset of a draft's settings and returns its report; `progress` may raise to abandon it."""
        from engine.config import from_mapping
        from engine.data.preview import preview
        from engine.models.catalogue import find_model

        config = from_mapping(mapping, source="form")
        return preview(config.data, model=find_model(config.model.name), progress=progress)

    def examine(self, mapping: dict[str, dict[str, Any]]) -> Iterator[Check]:
        """Yields each pre-flight row as soon as it is known; the last ones take seconds."""
        from engine.config import from_mapping
        from engine.launch.doctor import examine

        return examine(from_mapping(mapping, source="form"))

    def check_names(self) -> tuple[str, ...]:
        """Returns the names of all pre-flight rows, in order."""
        from engine.launch.doctor import NAMES

        return NAMES

    def measurement(self, *arguments: str) -> EngineProcess:
        """Creates the process of an `engine` command that measures something; does not start it."""
        from elite_tui.client.process import EngineProcess

        return EngineProcess(*arguments)

    def generation(self, reference: str, tell: Callable[[dict[str, Any]], None]) -> GenerationProcess:
        """Starts a process that generates text with a run's models and calls `tell` with every event."""
        from elite_tui.generation.process import GenerationProcess

        return GenerationProcess(reference, tell)

    def launch(self, config: RunConfig) -> RunHandle:
        """Starts a new run in its own process."""
        from engine.launch.launcher import launch

        return launch(config)

    def resume(self, path: Path) -> RunHandle:
        """Resumes a run that has ended from its last checkpoint, in its own process."""
        from engine.launch.launcher import launch
        from engine.runs.run_directory import RunDirectory

        run = RunDirectory.open(path)
        return launch(run.load_config(), resume=run)

    def open_run(self, reference: str | None) -> RunHandle:
        """Attaches to a run by id, prefix or path, None for the newest. Live and finished runs look the same."""
        from engine.launch.handle import RunHandle
        from engine.runs.run_index import find_run

        return RunHandle.attach(find_run(reference))

    def list_runs(self) -> Sequence[RunSummary]:
        """Lists the user's runs, newest first."""
        from engine.runs.run_index import list_runs

        return list_runs()

    def delete_run(self, path: Path) -> None:
        """Permanently deletes a finished run's folder."""
        from engine.runs.deletion import delete_run
        from engine.runs.run_directory import RunDirectory

        delete_run(RunDirectory.open(path))

    def compare(self, paths: Sequence[Path]) -> Comparison:
        """Compares runs side by side from the files in their folders."""
        from elite_tui.runs.comparison import read_comparison

        return read_comparison(paths)

    def read_report(self, path: Path) -> RunReport:
        """Reads a run's results from its folder."""
        from elite_tui.runs.report import read_report

        return read_report(path)

    def start_sampling(self, disk_path: Path) -> None:
        """Starts the telemetry thread."""
        from engine.hardware.telemetry import Sampler

        self._sampler = Sampler(disk_path=disk_path)
        self._sampler.start()

    def latest_sample(self) -> Snapshot | None:
        """Returns the newest telemetry snapshot without blocking."""
        return self._sampler.latest() if self._sampler is not None else None

    def stop_sampling(self) -> None:
        """Stops the telemetry thread."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
