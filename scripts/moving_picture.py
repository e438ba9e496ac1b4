"""Draws assets/tour.svg, the moving picture of the README: `make screenshots`.

Screens of the app, as scripts/screenshots.py draws them, are shown one after the other by CSS within one SVG: no
script, no font and no other file is loaded, so that a page may show it as an image. Who asks for reduced motion sees
the tiers alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from screenshots import FINISHED, TO_RESULT, Picture, draw, history_of, wizard

from elite_tui.app import EliteApp
from engine.runs.run_index import STATE_VARIABLE
from tests.tui.support import gpu_machine
from tests.tui.test_run_snapshots import GpuReplay, monitor

SIZE = (110, 30)
MOST_BYTES = 500_000


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One screen, and the seconds that it stays."""

    picture: Picture
    seconds: float


def trained(steps: int) -> Callable[[], EliteApp]:
    """The monitor of a run of 240 steps after some of them."""

    def watching() -> EliteApp:
        app = monitor(GpuReplay(seconds=3 + 20 * steps))
        app.state.snapshots.extend(history_of(gpu_machine()))
        return app

    return watching


FRAMES = (
    Frame(picture=Picture(name="project", app=wizard), seconds=2.5),
    Frame(picture=Picture(name="tiers", app=wizard, screen_name="tiers"), seconds=3.5),
    Frame(picture=Picture(name="review", app=wizard, screen_name="review"), seconds=2.5),
    *(Frame(picture=Picture(name=f"monitor-{steps}", app=trained(steps)), seconds=0.8) for steps in (8, 40, 80, 120)),
    Frame(picture=Picture(name="monitor", app=trained(161)), seconds=1.6),
    Frame(picture=Picture(name="result", app=lambda: FINISHED, act=TO_RESULT), seconds=4.0),
)
STILL = 1
"Frame for those who ask for reduced motion."


def combine(pictures: list[str], seconds: list[float]) -> str:
    """Returns one SVG that shows others of the same size one after the other, and begins again after the last.

    Args:
        pictures: SVGs as Rich writes them; the window and the clipping of lines are taken from the first.
        seconds: How long each stays.
    """
    whole = sum(seconds)
    parts = [_parts(picture, f"f{number}") for number, picture in enumerate(pictures)]
    styles: list[str] = []
    groups: list[str] = []
    begin = 0.0
    for number, (part, stays) in enumerate(zip(parts, seconds, strict=True)):
        start, end = 100 * begin / whole, 100 * (begin + stays) / whole
        begin += stays
        # Steps without blending; hidden again from its end on, but for the last, which the next round hides.
        steps = [f"0% {{ visibility: {'hidden' if number else 'visible'} }}"]
        if number:
            steps.append(f"{start:.2f}% {{ visibility: visible }}")
        if number < len(parts) - 1:
            steps.append(f"{end:.2f}%, 100% {{ visibility: hidden }}")
        else:
            steps.append("100% { visibility: visible }")
        styles += [part.colours, f"@keyframes k{number} {{ {' '.join(steps)} }}"]
        hidden = "visible" if number == STILL else "hidden"
        styles.append(f"#f{number} {{ visibility: {hidden}; animation: k{number} {whole:g}s step-end infinite }}")
        groups.append(f'<g id="f{number}">{part.screen}</g>')
    styles.append("@media (prefers-reduced-motion: reduce) { g[id] { animation: none !important } }")
    head, tail = parts[0].around
    return head.replace("</style>", "\n".join(styles) + "</style>", 1) + "\n".join(groups) + tail


@dataclass(frozen=True)
class _Parts:
    around: tuple[str, str]
    "The window, before its content and after it."
    screen: str
    colours: str


def _parts(picture: str, name: str) -> _Parts:
    (prefix,) = set(re.findall(r"terminal-\d+(?=-matrix \{)", picture))
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    # Text within its cells needs no clipping line by line.
    picture = re.sub(rf'<clipPath id="{prefix}-line-.*?</clipPath>\s*', "", picture, flags=re.DOTALL)
    picture = picture.replace(f"{prefix}-line-", "l")
    colours = "".join(re.findall(rf"\.{prefix}-r\d+ \{{[^}}]*\}}\n?", picture)).replace(f"{prefix}-r", f"{name}r")
    picture = re.sub(rf"\.{prefix}-r\d+ \{{[^}}]*\}}\n?", "", picture).replace(f"{prefix}-r", f"{name}r")
    picture = picture.replace(f"{prefix}-", "t-").replace("Fira Code, monospace", "monospace")
    start = picture.index('<g transform="translate(9, 41)"')
    start = picture.index(">", start) + 1
    end = picture.rindex("</g>", 0, picture.rindex("</svg>"))
    # A text of one line's end alone is drawn as nothing.
    screen = re.sub(r"<text[^>]*>\s*</text>", "", picture[start:end].replace("&#160;", "\u00a0"))
    screen = re.sub(r' clip-path="url\(#l\d+\)"', "", re.sub(r">\s+<", "><", screen.strip()))
    return _Parts((picture[:start], picture[end:]), screen, colours)


def main() -> int:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "tour.svg", metavar="FILE")
    parser.add_argument("--frames", type=Path, metavar="DIR", help="write each frame on its own, too")
    args = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    os.environ.pop("NO_COLOR", None)
    with tempfile.TemporaryDirectory() as state:
        os.environ[STATE_VARIABLE] = state
        pictures = [asyncio.run(draw(frame.picture, SIZE)) for frame in FRAMES]
    if args.frames is not None:
        args.frames.mkdir(parents=True, exist_ok=True)
        for frame, picture in zip(FRAMES, pictures, strict=True):
            (args.frames / f"{frame.picture.name}.svg").write_text(picture, encoding="utf-8")
    text = combine(pictures, [frame.seconds for frame in FRAMES])
    args.out.write_text(text, encoding="utf-8")
    print(f"{args.out.name:28} {args.out.stat().st_size / 1024:6.0f} KiB")
    return 0 if args.out.stat().st_size < MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
