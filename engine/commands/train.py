"""`engine train`: checks the configuration, starts the training process and follows it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config as run_config
from engine.commands.option_values import seconds
from engine.errors import INTERRUPTED, EliteError, one_line
from engine.errors.runs import RESUME_CHANGES_CONFIG, RUN_ALREADY_COMPLETE, RUN_NOT_ACTIVE, RUN_STILL_ACTIVE
from engine.errors.usage import CONFIG_INVALID

if TYPE_CHECKING:
    from engine.commands.progress_display import Display
    from engine.config import RunConfig
    from engine.launch.handle import RunHandle
    from engine.launch.signals import Interrupts
    from engine.plan.choice import Choice
    from engine.runs.run_directory import RunDirectory

NEWEST = ""
"""Value of --resume without a run."""

_POLL_S = 0.1
_KILL_AFTER_S = 5.0
_EXIT_WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds an option for each RunConfig field with a flag, and the command's own."""
    add_config_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="RUN",
        help="Continue this run (id, beginning of an id, or path) from its last checkpoint; without RUN, the newest, "
        "in --output where that is given",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="Check and plan the run, print the plan, and start nothing"
    )
    add_display_arguments(parser)
    parser.add_argument("--detach", action="store_true", help="Start the run and return at once")
    parser.add_argument("--json", action="store_true", help="Print the run's events on stdout, one a line")


def add_display_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of plain lines, which `engine attach` shares."""
    parser.add_argument(
        "--plain",
        action="store_true",
        help="Print plain lines instead of a progress bar, in reading order, for screen readers; as without a terminal",
    )
    parser.add_argument(
        "--every",
        type=seconds(),
        default=30.0,
        metavar="SECONDS",
        help="Seconds between plain lines of steps",
    )


def display_options(args: argparse.Namespace, *, notify: bool) -> dict[str, Any]:
    """Returns the arguments of `open_display` that the options stand for."""
    return {"as_json": args.json, "plain": args.plain, "every": args.every, "notify": notify}


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_config` reads."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="Read the configuration from this YAML file")
    for spec in run_config.fields():
        if spec.flag is None:
            continue
        repeated = spec.type == list[str]
        parser.add_argument(
            spec.flag,
            dest=spec.path,
            action="append" if repeated else "store",
            metavar="DIR" if spec.flag in ("--repo", "--output") else spec.flag.rpartition("-")[2].upper(),
            help=f"{spec.description} {'May be repeated.' if repeated else ''}".replace("%", "%%").strip(),
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Set any field of the configuration, such as training.learning_rate=1e-4; may be repeated",
    )
    parser.add_argument(
        "--auto",
        action="store_true",
        help="Choose everything that is not set (windows and updates, precision, device); without --repo, the current "
        "folder",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, and returns the exit status.

    Raises:
        EliteError: CONFIG_INVALID, a dry run of a resumed run; any error of planning and training.
    """
    from engine.commands.admission import admit_model
    from engine.commands.progress_display import shown_at_work
    from engine.launch import preflight
    from engine.launch.launcher import launch
    from engine.launch.signals import Interrupts

    if args.dry_run and args.resume is not None:
        raise CONFIG_INVALID(
            source="command line",
            field="--dry-run",
            problem="--resume goes on with a run that is planned already",
            remedy="leave one of them out",
        )
    if args.resume is None:
        resumed = None
        asked = read_config(args)
        admit_model(asked.model.name)
        with shown_at_work("checking the files and the machine", as_json=args.json, plain=args.plain):
            config, choice = preflight.check_and_plan(asked)
        if args.dry_run:
            _print_choice(choice, as_json=args.json)
            return 0
    else:
        output = getattr(args, "output.directory")
        resumed = find_resumable(args.resume, None if output is None else Path(output))
        config = resumed_config(resumed, args)
    # Entered before the launch, so that Ctrl-C during it already stops with a checkpoint.
    with Interrupts() as interrupts:
        handle = launch(config, resume=resumed)
        if args.detach:
            _report_detached(handle, as_json=args.json)
            handle.close()
            return 0
        shown = display_options(args, notify=config.notify.desktop)
        return follow(handle, interrupts, **shown)


def read_config(args: argparse.Namespace) -> RunConfig:
    """Builds the configuration: the file, overridden by named options, overridden by `--set`.

    Raises:
        EliteError: CONFIG_UNREADABLE, CONFIG_INVALID or OVERRIDE_MALFORMED.
    """
    data = run_config.load_mapping(args.config) if args.config else {}
    if args.config:
        run_config.from_mapping(data, source=str(args.config))
    _apply_options(data, args)
    named = data.get("data", {})
    if args.auto and not (named.get("repositories") or named.get("datasets")):
        data.setdefault("data", {})["repositories"] = [str(Path.cwd())]
    return run_config.from_mapping(data, source="command line")


def find_resumable(reference: str, output: Path | None) -> RunDirectory:
    """Finds the run that `--resume` means; without a name the newest, in `output` if given.

    Raises:
        EliteError: RUN_UNKNOWN, RUN_AMBIGUOUS, RUN_STILL_ACTIVE or RUN_ALREADY_COMPLETE.
    """
    from engine.runs import run_index
    from engine.runs.result_check import result_problem
    from engine.runs.run_summary import ACTIVE

    run = run_index.find_run(None, output) if reference == NEWEST else run_index.find_run(reference)
    status = run.status()
    if status in ACTIVE:
        raise RUN_STILL_ACTIVE(run=run.id, status=status)
    if status == "completed":
        problem = result_problem(run.result_path(run.load_config().training.method))
        if problem is None:
            raise RUN_ALREADY_COMPLETE(run=run.id)
        said = one_line(f"the result of {run.id} is damaged ({problem}): it is made again from the last checkpoint")
        print(said, file=sys.stderr)  # noqa: T201
    return run


def resumed_config(run: RunDirectory, args: argparse.Namespace) -> RunConfig:
    """Returns the run's own configuration with permitted changes, which it prints on stderr.

    Raises:
        EliteError: RESUME_CHANGES_CONFIG where an option changes a field that a resumed run must keep.
    """
    from msgspec import structs

    from engine.launch.preflight import with_absolute_paths
    from engine.runs.resume_changes import changes

    config = run.load_config()
    data = run_config.load_mapping(args.config) if args.config else run_config.to_mapping(config)
    _apply_options(data, args)
    asked = run_config.from_mapping(data, source="command line")
    wanted = with_absolute_paths(asked)
    if not asked.output.model_name:  # keeps the one it has
        kept = structs.replace(wanted.output, model_name=config.output.model_name)
        wanted = structs.replace(wanted, output=kept)
    if asked.data.fim is None:  # keeps its share: that of an earlier version's default is in its file
        wanted = structs.replace(wanted, data=structs.replace(wanted.data, fim=config.data.fim))
    changed = changes(config, wanted, scheduled=run.has_schedule())
    refused = [str(change) for change in changed if not change.allowed]
    if refused:
        raise RESUME_CHANGES_CONFIG(run=run.id, changes="; ".join(refused))
    for change in changed:
        print(f"changed  {one_line(change)}", file=sys.stderr)  # noqa: T201
    return wanted if changed else config


def follow(
    handle: RunHandle,
    interrupts: Interrupts,
    *,
    as_json: bool,
    plain: bool = False,
    every: float = 30.0,
    notify: bool = False,
) -> int:
    """Shows a run until it ends, and passes Ctrl-C on to it.

    Args:
        handle: The run, launched by this process.
        interrupts: Counts the signals to pass on.
        as_json: Prints events on stdout instead of a display on stderr.
        plain, every, notify: See `engine.commands.progress_display.open_display`.

    Returns:
        The run's exit status.
    """
    from engine.commands.progress_display import open_display

    passed_on = 0
    with open_display(as_json=as_json, plain=plain, every=every, notify=notify) as display:
        while handle.ending is None:
            for envelope in handle.poll():
                if envelope.seq >= handle.first_seq:
                    display.show(envelope)
            if interrupts.count > passed_on and handle.ending is None:
                passed_on += 1
                _pass_on_interrupt(handle, display, passed_on)
            if not handle.behind:
                time.sleep(_POLL_S)
        display.finish(handle.run, handle.ending)
    handle.wait_exit(_EXIT_WAIT_S)
    handle.close()
    return exit_code(handle)


def exit_code(handle: RunHandle) -> int:
    """Returns the exit status for a run's last event."""
    from engine.protocol.events import RunFailed

    if isinstance(handle.ending, RunFailed):
        return handle.ending.exit_code
    return 0 if handle.ending is not None and handle.ending.status == "completed" else INTERRUPTED


def _apply_options(data: dict[str, Any], args: argparse.Namespace) -> None:
    for spec in run_config.fields():
        value = getattr(args, spec.path) if spec.flag else None
        if value is None:
            continue
        # Parse numbers as in a YAML file; keep text as it is.
        parsed = value if spec.type in (str, list[str]) else _parse(value)
        data.setdefault(spec.section, {})[spec.path.partition(".")[2]] = parsed
    for text in args.set:
        run_config.apply_override(data, text)


def _parse(text: str) -> Any:
    import yaml

    if text == "all":  # value of --gpus
        return 0
    try:
        return run_config.parse_value(text)
    except (yaml.YAMLError, ValueError):
        return text  # no number field accepts it, so the check names the field


def _pass_on_interrupt(handle: RunHandle, display: Display, count: int) -> None:
    from engine.protocol.commands import Stop

    try:
        if count == 1:
            handle.send(Stop(id=f"interrupt-{os.getpid()}"))
            display.say("stopping after this step, with a checkpoint; press Ctrl-C again to end at once")
        else:
            display.say("ending at once, without a checkpoint")
            handle.terminate()
            if not handle.wait_exit(_KILL_AFTER_S):
                handle.terminate(signal.SIGKILL)
    except EliteError as error:
        if error.kind is not RUN_NOT_ACTIVE:
            raise
        # It has just ended by itself; its events will say how.


def _print_choice(choice: Choice, *, as_json: bool) -> None:
    """Prints the plan of a run that is not started."""
    from engine.commands.output import print_json
    from engine.commands.plan_tables import print_schedule

    if as_json:
        schedule = None if choice.schedule is None else choice.schedule.as_json()
        rate, plan = choice.learning_rate, choice.plan.as_json()
        print_json({"note": choice.note, "learning_rate": rate, "plan": plan, "schedule": schedule})
        return
    print(one_line(choice.note))  # noqa: T201
    if choice.schedule is not None:
        print_schedule(choice.schedule)
        return
    print(f"Peak learning rate {choice.learning_rate:g}.")  # noqa: T201
    if choice.plan.warning:
        print(one_line(choice.plan.warning))  # noqa: T201


def _report_detached(handle: RunHandle, *, as_json: bool) -> None:
    from engine.commands.output import print_json

    run = handle.run
    if as_json:
        print_json({"run": run.id, "path": str(run.path)})
        return
    lines = (
        f"run      {run.id}",
        f"folder   {run.path}",
        f"watch    elite-tui monitor {run.id}",
        f"         engine attach {run.id}",
        f"stop     engine stop {run.id}",
    )
    print("\n".join(lines), file=sys.stderr)  # noqa: T201
