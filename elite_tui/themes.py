"""The two themes. Text reaches a contrast of 4.5:1 on its background (WCAG AA), but for what cannot be entered.

`muted` and `faint` are colours of our own: Textual's text-muted is computed where it is drawn, which a Content's
spans cannot do.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="elite-dark",
    dark=True,
    background="#0f141a",
    surface="#171e26",
    panel="#1d2631",
    foreground="#d7dee6",
    primary="#5cc8b0",
    secondary="#6fa8dc",
    accent="#e3b565",
    warning="#e3b565",
    error="#f07178",
    success="#8fcf7a",
    variables={
        "footer-background": "#1d2631",
        "footer-key-foreground": "#e3b565",
        "footer-description-foreground": "#aab6c3",
        "muted": "#8d9bab",
        "faint": "#5f6d7c",
        "button-focus-text-style": "bold underline",
        "block-cursor-background": "#2c4a52",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "border": "#2f3c4a",
        "border-blurred": "#2f3c4a",
        "input-selection-background": "#5cc8b0 35%",
    },
)

LIGHT = Theme(
    name="elite-light",
    dark=False,
    background="#fbfaf7",
    surface="#f0eee8",
    panel="#e6e3da",
    foreground="#22303c",
    primary="#0b7468",
    secondary="#245f9e",
    accent="#8a5a00",
    warning="#8a5a00",
    error="#b3261e",
    success="#2f6f2a",
    variables={
        "footer-background": "#e6e3da",
        "footer-key-foreground": "#8a5a00",
        "footer-description-foreground": "#4a5a68",
        "muted": "#5d6b78",
        "faint": "#8f979e",
        "button-focus-text-style": "bold underline",
        "block-cursor-background": "#bfe0da",
        "block-cursor-foreground": "#10202b",
        "block-cursor-text-style": "bold",
        "border": "#cbc7bb",
        "border-blurred": "#cbc7bb",
        "input-selection-background": "#0b7468 25%",
    },
)
