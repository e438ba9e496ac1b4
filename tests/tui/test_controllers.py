"""Controllers work for any Host, here one without a terminal and with a fixed clock."""

from __future__ import annotations

import asyncio

import pytest

from elite_tui.client.workers import EngineClient
from elite_tui.messages import Answered, Changed, CommandSent, MeasuringProgressed, ReadingProgressed, RunOpened
from elite_tui.runs.controller import RunController
from elite_tui.state import AppState
from elite_tui.state_part import StatePart
from elite_tui.wizard.controller import WizardController
from elite_tui.wizard.draft import Draft
from elite_tui.wizard.draft_controller import DraftController
from elite_tui.wizard.facts import Reading
from engine.errors.data import REPOSITORY_MISSING
from tests.tui.support import FixedEngine, gpu_machine, half_way


class Timer:
    def __init__(self, callback):
        self.callback = callback
        self.stopped = False

    def stop(self):
        self.stopped = True


class Desktop:
    """A Host that records its calls; workers run at once."""

    screen_name = "project"

    def __init__(self):
        self.told, self.posted, self.timers, self.notices, self.left = [], [], [], [], []

    def tell(self, part):
        self.told.append(part)

    def go(self, name):
        self.screen_name = name

    def leave(self, run_state="goes on"):
        self.left.append(run_state)

    def alert(self, notice):
        self.notices.append(notice.title)

    def notify(self, message, **_):
        self.notices.append(message)

    def post_message(self, message):
        self.posted.append(message)
        return True

    def run_worker(self, work, name="", group="", *, exclusive=False):
        asyncio.run(work())

    def set_timer(self, delay, callback):
        self.timers.append(Timer(callback))
        return self.timers[-1]


class Ground:
    def __init__(self, path=None, handle=None):
        self.host = Desktop()
        self.engine = FixedEngine(gpu_machine(), handle)
        self.state = AppState(draft=Draft(path, {"data": {"repositories": ["/home/me/shop"]}}))
        self.client = EngineClient(self.host, self.engine)
        self.controller = WizardController(self.host, self.state, self.client)
        self.drafting = DraftController(self.host, self.state, self.controller)
        self.runs = RunController(self.host, self.state, self.client)

    def take(self, kind):
        """Removes and returns the only posted message of a type."""
        (message,) = (message for message in self.host.posted if isinstance(message, kind))
        self.host.posted.remove(message)
        return message


def test_an_answer_fills_the_part_that_was_asked_for_and_asks_what_depends_on_it():
    ground = Ground()
    ground.controller.ask_machine()
    assert ground.state.machine.loading
    assert ground.host.told == [StatePart.MACHINE]
    answer = ground.take(Answered)
    answer.settle()
    assert ground.state.machine.value == gpu_machine()
    assert not ground.state.machine.loading
    ground.controller.answered(answer.fetched.part)
    assert ground.state.tiers.loading
    ground.take(Answered).settle()
    assert ground.state.tiers.value.table.tiers


def test_a_refusal_is_the_error_of_the_part():
    ground = Ground()
    ground.engine.facts = REPOSITORY_MISSING(path="/home/me/shop")
    ground.controller.ask_repository()
    ground.take(Answered).settle()
    assert ground.state.repository.error is ground.engine.facts
    assert ground.state.repository.value is None


def test_typing_is_planned_for_once_and_written(tmp_path):
    path = tmp_path / "wizard.json"
    ground = Ground(path)
    ground.state.preflight.value = object()
    ground.drafting.edit("lora.rank", "8")
    ground.drafting.edit("lora.rank", "8")  # a control that reports its initial value
    ground.drafting.edit("lora.rank", "80")
    assert ground.host.told == [StatePart.DRAFT, StatePart.DRAFT]
    assert ground.state.preflight.value is None
    plan, save, plan_again = ground.host.timers
    assert (plan.stopped, save.stopped, plan_again.stopped) == (True, False, False)
    save.callback()
    assert Draft.load(path).get("lora.rank") == 80


def test_a_draft_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    ground = Ground(tmp_path / "file" / "wizard.json")
    ground.drafting.edit("lora.rank", "8")
    ground.drafting.save()
    assert "cannot be kept" in ground.host.notices[0]
    ground.drafting.close()


def test_a_dataset_is_read_anew_only_in_its_screen():
    ground = Ground()
    ground.drafting.edit("data.packing", "false")
    before = len(ground.host.timers)
    ground.host.screen_name = "data"
    ground.drafting.edit("data.packing", "")
    assert len(ground.host.timers) == before + 1
    ground.host.timers[-1].callback()
    assert ground.state.data.loading


def test_the_app_ends_when_its_last_command_is_handed_over():
    ground = Ground(handle=half_way())
    ground.runs.open([None])
    ground.runs.opened(ground.take(RunOpened))
    assert ground.host.screen_name == "monitor"
    ground.runs.stop_and_leave()
    assert ground.host.left == []
    ground.runs.sent(ground.take(CommandSent))
    assert ground.host.left == ["is stopping; it saves a checkpoint first"]
    ground.client.close()


@pytest.mark.parametrize(
    ("newer", "older", "replaces"),
    [
        (Changed(StatePart.RUN), Changed(StatePart.RUN), True),
        (Changed(StatePart.RUN), Changed(StatePart.RUNS), False),
        (MeasuringProgressed("b"), MeasuringProgressed("a"), True),
        (MeasuringProgressed("b"), ReadingProgressed(Reading(0.5, "a")), False),
        (MeasuringProgressed("b"), Changed(StatePart.MEASURING), False),
    ],
)
def test_only_the_newest_of_a_kind_waits(newer, older, replaces):
    assert newer.can_replace(older) is replaces
