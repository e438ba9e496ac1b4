"""Random keys, clicks and resizes over all screens: nothing crashes, and escape always leads home."""

from __future__ import annotations

import random
from collections import deque

import pytest
from textual import events
from textual.command import CommandPalette
from textual.screen import ModalScreen

from elite_tui.actions import ACTIONS
from elite_tui.screen_list import SCREENS
from tests.tui.support import gpu_machine, history_of, make_app, settled, until
from tests.tui.test_keys import SMALL, Watched

SIZES = ((60, 20), (80, 24), (120, 36), (200, 60))
HOMES = ("project", "monitor", "runs")
"Where escape ends: the first screen of the wizard, a run, or the list of runs that the app began with."
STEERING = ("tab", "shift+tab", "up", "down", "left", "right", "home", "end", "pageup", "pagedown", "enter", "escape")
TYPED = (*"aq2,. /-", "backspace", "delete", "space", "ctrl+a", "ctrl+k", "ctrl+u", "ctrl+w")
BOUND = tuple(dict.fromkeys(key for action in ACTIONS for key in action.keys.split(",")))
LEAVING = {"ctrl+q", "d"}
"Keys that end the app, which are pressed less often so that walks are long."


def next_act(chance: random.Random) -> tuple[str, object]:
    """Draws one act: keys at once without a pause, a click, a resize, or a screen by name."""
    kind = chance.choices(("keys", "click", "resize", "go"), (16, 3, 2, 1))[0]
    if kind == "keys":
        pools = chance.choices((BOUND, STEERING, TYPED), (4, 4, 1), k=chance.choice((1, 1, 1, 2, 3, 8)))
        keys = [chance.choice(pool) for pool in pools]
        if len(set(keys)) > 1 or keys[0] not in LEAVING or chance.random() < 0.2:
            return kind, keys
        return kind, ["tab"] * 12
    if kind == "click":
        return kind, (chance.random(), chance.random())
    if kind == "resize":
        return kind, chance.choice(SIZES)
    return kind, chance.choice(list(SCREENS))


def press_at_once(app, *keys) -> None:
    """Puts keys into the app's queue as a terminal's driver does: nobody waits for what the first one does."""
    names = {"space": " ", "slash": "/", "comma": ",", "full_stop": ".", "minus": "-", "plus": "+"}
    for key in keys:
        event = events.Key(key, names.get(key, key if len(key) == 1 else None))
        event.set_sender(app)
        app.post_message(event)


async def do(pilot, act) -> None:
    """Performs one act and waits until its messages are handled."""
    app = pilot.app
    kind, what = act
    if kind == "keys":
        press_at_once(app, *what)
    elif kind == "click":
        x, y = int(what[0] * app.size.width), int(what[1] * app.size.height)
        await pilot.click(offset=(x, y))
    elif kind == "resize":
        await pilot.resize_terminal(*what)
    elif not isinstance(app.screen, (ModalScreen, CommandPalette)):
        app.go(what)
    if app.is_running:
        await pilot.pause()


def where(app) -> str:
    """Returns the name of the screen on top, or of the dialog."""
    return getattr(app.screen, "ROOM", type(app.screen).__name__)


async def walk(seed: int, acts: int) -> None:
    """Walks at random; fails with the latest acts."""
    chance = random.Random(seed)
    first = chance.choice(("project", "project", "monitor", "runs"))
    engine = Watched(ended=chance.random() < 0.5)
    app = make_app(first, engine=engine, values=SMALL)
    app.state.snapshots.extend(history_of(gpu_machine()))
    latest: deque[object] = deque(maxlen=12)
    try:
        async with app.run_test(size=chance.choice(SIZES)) as pilot:
            for _ in range(acts):
                act = next_act(chance)
                latest.append((where(app), act))
                await do(pilot, act)
                if not app.is_running or app._exception is not None:
                    break
                assert len([screen for screen in app.screen_stack if hasattr(screen, "ROOM")]) == 1, "one screen below"
            else:
                await lead_home(pilot)
    except BaseException as error:
        error.add_note(f"seed {seed} from {first}: {list(latest)}")
        raise


async def lead_home(pilot) -> None:
    """Presses escape until the app is home: no dialog is open, and the screen is one of HOMES."""
    app = pilot.app
    for _ in range(12):
        if not isinstance(app.screen, (ModalScreen, CommandPalette)) and where(app) in HOMES:
            break
        await pilot.press("escape")
        await pilot.pause()
    assert where(app) in HOMES, f"escape ends at {where(app)}"
    await settled(pilot)
    app.go("project")
    await until(pilot, lambda: where(app) == "project")


@pytest.mark.parametrize("seed", range(4))
async def test_a_short_walk(seed):
    await walk(seed, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
async def test_a_long_walk(seed):
    await walk(seed, 150)
