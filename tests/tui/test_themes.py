"""The themes are readable and distinct with every kind of colour vision, in 256 colours and in none."""

from __future__ import annotations

import itertools

import pytest
from rich.color import Color, ColorSystem

from elite_tui.themes import COLOUR_BLIND, DARK, LIGHT, THEMES, theme_after, theme_named
from elite_tui.wizard.draft import FILE_NAME, Draft
from tests.tui.support import cpu_machine, make_app, settled

GROUNDS = ("background", "surface", "panel")
TEXTS = ("foreground", "primary", "secondary", "accent", "warning", "error", "success", "muted")
JUDGEMENTS = ("success", "warning", "error")

# Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# severity 1.0, on linear RGB.
DEFICIENCIES = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def colour_of(theme, name):
    return theme.variables.get(name) or getattr(theme, name)


def channels(colour):
    return tuple(int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5))


def linear(rgb):
    return tuple(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb)


def luminance(rgb):
    red, green, blue = linear(rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """Returns WCAG 2.2's contrast ratio."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def seen_with(rgb, deficiency):
    rows = DEFICIENCIES[deficiency]
    straight = linear(rgb)
    return tuple(min(1.0, max(0.0, sum(f * v for f, v in zip(row, straight, strict=True)))) for row in rows)


def lab(rgb_linear):
    red, green, blue = rgb_linear
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def difference(one, other):
    """Returns CIE76's difference; two colours below 10 look alike at a glance."""
    return sum((a - b) ** 2 for a, b in zip(lab(one), lab(other), strict=True)) ** 0.5


def in_256(colour):
    shown = Color.parse(colour).downgrade(ColorSystem.EIGHT_BIT).get_truecolor()
    return tuple(value / 255 for value in shown)


themes = pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)


@themes
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_can_be_read(theme, ground, text):
    assert contrast(channels(colour_of(theme, text)), channels(colour_of(theme, ground))) >= 4.5


@themes
@pytest.mark.parametrize("text", TEXTS)
def test_text_can_be_read_in_256_colours(theme, text):
    assert contrast(in_256(colour_of(theme, text)), in_256(colour_of(theme, "background"))) >= 4.5


@themes
def test_good_and_bad_stay_apart_in_256_colours(theme):
    shown = [in_256(colour_of(theme, name)) for name in JUDGEMENTS]
    for one, other in itertools.combinations(shown, 2):
        assert difference(linear(one), linear(other)) >= 20


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_good_and_bad_stay_apart_for_every_eye(deficiency):
    shown = {name: seen_with(channels(colour_of(COLOUR_BLIND, name)), deficiency) for name in JUDGEMENTS}
    for one, other in itertools.combinations(JUDGEMENTS, 2):
        assert difference(shown[one], shown[other]) >= 25, (one, other)


def test_greys_stay_grey_in_256_colours():
    """A tinted dark grey would become navy blue."""
    for theme in (DARK, COLOUR_BLIND):
        for ground in GROUNDS:
            red, green, blue = in_256(colour_of(theme, ground))
            assert max(red, green, blue) - min(red, green, blue) <= 0.05


def test_the_themes_follow_one_another():
    assert theme_after(DARK.name) == LIGHT.name
    assert theme_after(LIGHT.name) == COLOUR_BLIND.name
    assert theme_after(COLOUR_BLIND.name) == DARK.name
    assert theme_after("textual-dark") == DARK.name
    assert theme_named("no such theme") == DARK.name


async def test_the_theme_is_kept(tmp_path):
    app = make_app(machine=cpu_machine(), draft_path=tmp_path / FILE_NAME)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("f2", "f2", "ctrl+q")
    draft = Draft.load(tmp_path / FILE_NAME)
    assert draft.kept("theme") == COLOUR_BLIND.name
    again = make_app(machine=cpu_machine())
    again.state.draft.keep("theme", draft.kept("theme"))
    assert type(again)(again.state, again.client.engine).theme == COLOUR_BLIND.name
