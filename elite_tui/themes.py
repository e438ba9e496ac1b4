"""Defines three themes: dark, light, and dark for red-green colour blindness.

Text reaches a contrast of 4.5:1 on its background (WCAG AA), and what cannot be entered 3:1. The tests check every
theme, in full colour and in the 256 colours of a terminal over SSH.

The greys are nearly neutral: where a terminal has 256 colours (most connections over SSH), a tinted dark grey would
become navy blue.

`muted` and `faint` are this app's own colours. Textual computes its text-muted where it is drawn, which a Content's
spans cannot do.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="elite-dark",
    dark=True,
    background="#131519",
    surface="#1b1e22",
    panel="#25292e",
    foreground="#dde1e5",
    primary="#5cc8b0",
    secondary="#6fa8dc",
    accent="#e3b565",
    warning="#e3b565",
    error="#f07178",
    success="#8fcf7a",
    variables={
        "footer-background": "#25292e",
        "footer-key-foreground": "#e3b565",
        "footer-description-foreground": "#aab6c3",
        "muted": "#979fa8",
        "faint": "#838a92",
        "button-focus-text-style": "bold underline",
        "block-cursor-background": "#2c4a52",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "border": "#3c4249",
        "border-blurred": "#3c4249",
        "input-selection-background": "#5cc8b0 35%",
    },
)

LIGHT = Theme(
    name="elite-light",
    dark=False,
    background="#fbfbf9",
    surface="#efefec",
    panel="#e4e4e0",
    foreground="#22303c",
    primary="#0a6e63",
    secondary="#245f9e",
    accent="#8a5a00",
    warning="#8a5a00",
    error="#b3261e",
    success="#2f6f2a",
    variables={
        "footer-background": "#e4e4e0",
        "footer-key-foreground": "#8a5a00",
        "footer-description-foreground": "#4a5a68",
        "muted": "#56636f",
        "faint": "#666e76",
        "button-focus-text-style": "bold underline",
        "block-cursor-background": "#bfe0da",
        "block-cursor-foreground": "#10202b",
        "block-cursor-text-style": "bold",
        "border": "#c6c6c1",
        "border-blurred": "#c6c6c1",
        "input-selection-background": "#0a6e63 25%",
    },
)

COLOUR_BLIND = Theme(
    name="elite-colour-blind",
    dark=True,
    # Good is blue, bad is orange, a warning is pale yellow. They differ in lightness too, and so stay distinct for
    # every kind of colour vision (after Okabe and Ito, "Color Universal Design", 2008).
    background="#131519",
    surface="#1b1e22",
    panel="#25292e",
    foreground="#e3e6ea",
    primary="#56b4e9",
    secondary="#b8a1d9",
    accent="#f0e442",
    warning="#f0e442",
    error="#e8813a",
    success="#4f9fe0",
    variables={
        **DARK.variables,
        "footer-key-foreground": "#f0e442",
        "block-cursor-background": "#1d4a70",
        "input-selection-background": "#56b4e9 35%",
    },
)

THEMES = (DARK, LIGHT, COLOUR_BLIND)
"Themes in the order of switching."


def theme_after(name: str) -> str:
    """Returns the name of the next theme, or of the first if `name` is unknown."""
    names = [theme.name for theme in THEMES]
    return names[(names.index(name) + 1) % len(names)] if name in names else names[0]


def theme_named(name: str) -> str:
    """Returns `name` if it is a known theme, else the first theme's name."""
    return name if name in {theme.name for theme in THEMES} else THEMES[0].name
