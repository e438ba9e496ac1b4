"""Writes the reference pages of docs/ from the code that they describe.

python scripts/reference_docs.py            configuration, commands, tiers and troubleshooting
python scripts/reference_docs.py --check    fail if one of them is not current
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from engine.cli import build_parser
from engine.config import RunConfig, fields, to_yaml
from engine.errors import DOES_NOT_FIT, INTERRUPTED, TRAINING_FAILED, USAGE, all_kinds
from engine.hardware.cards import Card, find_card, simulate
from engine.hardware.machine import GIB
from engine.models.catalogue import catalogue, find_model
from engine.models.spec import ModelSpec
from engine.plan.planner import TierPlan, plan_context
from engine.plan.request import PlanRequest
from engine.plan.tiers import tiers
from engine.quantities import format_bytes, format_seconds

GENERATED = "<!-- Written by `make docs` from the code. -->"
MODEL = "qwen2.5-coder-1.5b"
CARDS = (
    ("rtx-2060", 32),
    ("rtx-2060-super", 64),
    ("rtx-3060-12gb", 64),
    ("rtx-4060", 64),
    ("rtx-3090", 64),
    ("rtx-4090", 64),
    ("rtx-5090", 128),
    ("a100-80gb", 256),
    ("h100-sxm", 256),
)
"""Cards of the tiers page, with GiB of RAM beside them."""
MODEL_CARDS = (("rtx-3060-12gb", 64), ("rtx-4090", 64), ("rtx-5090", 128), ("h100-sxm", 256))
"""Cards of the models page."""


# --- configuration -------------------------------------------------------------------------------------------


def configuration_page() -> str:
    lines = [
        "# Configuration",
        "",
        GENERATED,
        "",
        "A run is one YAML file. `engine train --config FILE` takes it, the wizard writes it, and every run keeps its "
        "own as `config.yaml`. Each field can also be set on the command line with `--set section.field=value`; a few "
        "have an option of their own. What is left out has its default, and what is wrong is refused by name, all at "
        "once.",
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | done |",
        f"| {USAGE} | wrong usage or configuration |",
        f"| {DOES_NOT_FIT} | it does not fit, or a check before the start failed |",
        f"| {TRAINING_FAILED} | training failed; a checkpoint was kept where there was one to keep |",
        f"| {INTERRUPTED} | interrupted, after a checkpoint |",
        "",
    ]
    section = ""
    for spec in fields():
        if spec.section != section:
            section = spec.section
            about = inspect.getdoc(getattr(RunConfig(), section)) or ""
            lines += [f"## {section}", "", about.splitlines()[0], ""]
            lines += ["| field | default | allowed | |", "|---|---|---|---|"]
        option = f" Option: `{spec.flag}`." if spec.flag else ""
        name = spec.path.partition(".")[2]
        default = "unset" if spec.default is None else f"`{_value(spec.default)}`"
        lines.append(f"| `{name}` | {default} | {_cell(spec.allowed)} | {_cell(spec.description)}{option} |")
        if spec is fields()[-1] or _next_section(spec.path) != section:
            lines.append("")
    lines += ["## All of it, with the defaults", "", "```yaml", to_yaml(RunConfig()).rstrip(), "```"]
    return "\n".join(lines).rstrip() + "\n"


def _next_section(path: str) -> str:
    paths = [spec.path for spec in fields()]
    following = paths.index(path) + 1
    return paths[following].partition(".")[0] if following < len(paths) else ""


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- commands ------------------------------------------------------------------------------------------------


def commands_page() -> str:
    parser = build_parser()
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Commands",
        "",
        GENERATED,
        "",
        "`engine COMMAND --help` says the same. `--json` prints one document on standard output and everything else on "
        "standard error. Exit codes stand in [configuration.md](configuration.md#exit-codes).",
        "",
    ]
    for choice in found._choices_actions:
        lines += [f"## engine {choice.dest}", "", choice.help or "", ""]
        sub = found.choices[choice.dest]
        rows = [_option(action) for action in sub._actions if not isinstance(action, argparse._HelpAction)]
        if rows:
            lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _option(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or (
        action.metavar if isinstance(action.metavar, str) else "/".join(map(str, action.choices or [action.dest]))
    )
    if action.option_strings and action.nargs != 0:
        value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
        name += f" {value if isinstance(value, str) else ' '.join(value)}"
    text = (action.help or "").replace("%%", "%")
    return f"| `{_cell(name)}` | {_cell(text)} |"


# --- tiers ---------------------------------------------------------------------------------------------------


def tiers_page() -> str:
    lines = [
        "# Tiers",
        "",
        GENERATED,
        "",
        "A tier is a context length: how much of a repository one window sees. A run's windows grow to the highest "
        "that fits with 12% of GPU, RAM and disk left free, in the time that there is, and that the repository fills, "
        "up to the length that the model was trained with; `--tier` goes beyond it ([planning.md](planning.md#hours)).",
        "",
        "| tier | context | one window sees |",
        "|---|---|---|",
        *(f"| {t.number}{' (extreme)' if t.extreme else ''} | {t.context:,} | {t.sees} |" for t in tiers()),
        "",
        "## What cards can do",
        "",
        f"**Predicted**, for an adapter on {MODEL}, by the same sum that a run uses (`engine plan --hardware CARD "
        "--ram GIB`); the cards were not at hand. Memory formulas were held against measurements on one H100 "
        "([planning.md](planning.md)); seconds come from data sheets. A cell is the time of one window, forward and "
        "backward, and where its hidden states wait, or the disk if attention outputs do.",
        "",
    ]
    shown = [t for t in tiers() if t.number >= 4]
    lines += [
        "| card, RAM | " + " | ".join(_short(t.context) for t in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for name, ram in CARDS:
        card = find_card(name)
        cells = [_tier_cell(_planned(find_model(MODEL), card, ram, t.context)) for t in shown]
        lines.append(f"| {card.name}, {ram} GiB | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## What decides",
        "",
        "- **GPU memory** holds the weights (or two layers of them), one layer's keys and values (or pages of them) "
        "and one tile's activations. None of them has to grow with the context once keys and values are on the host.",
        "- **Host memory or disk** holds every layer's input: layers × tokens × width × 2 bytes, halved by each "
        "doubling of `checkpoint_every`, at the price of computing again.",
        "- **Time** grows with the square of the context: from tier 6 or so attention is nearly all of it, and the "
        "card's rate for attention decides.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _short(context: int) -> str:
    return f"{context // 1024}K" if context < 2**20 else f"{context // 2**20}M"


@functools.cache
def _planned(spec: ModelSpec, card: Card, ram: int, context: int) -> TierPlan:
    machine = simulate(card, ram_bytes=ram * GIB, disk_bytes=500 * GIB)
    return plan_context(PlanRequest.of(machine, spec, "auto"), context)


def _tier_cell(row: TierPlan) -> str:
    if not row.fits:
        return "–"
    stream = row.layout.stream
    home = "gpu" if stream is None else "disk" if stream.spills else stream.hidden_home
    where = {"gpu": "", "host": ", RAM", "disk": ", disk"}[home]
    return f"{format_seconds(row.step_seconds / row.windows_per_step)}{where}"


# --- models --------------------------------------------------------------------------------------------------


def models_page() -> str:
    machines = [(find_card(name), ram) for name, ram in MODEL_CARDS]
    cards = [f"{card.name.removeprefix('NVIDIA ').removeprefix('GeForce ')}, {ram} GiB" for card, ram in machines]
    columns = ["model", "parameters", "released", "licence", "context", "template", "FIM", *cards]
    lines = [
        "# Models",
        "",
        GENERATED,
        "",
        "The catalogue (`assets/models.toml`) can be planned without a download. A hub id or a local directory works "
        "too, of every admitted family ([families.md](families.md)). Newest first; older entries have no month. The "
        "public text that the shapes of a newer one were read from is named below the table.",
        "",
        "The last columns are the longest context that fits, **predicted** for an adapter with `engine plan --model "
        "NAME --hardware CARD --ram GIB`, and the time of one window; the cards were not at hand.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for spec in catalogue().values():
        cells = [
            f"`{spec.name}`",
            f"{spec.parameters / 1e9:.2f}B",
            spec.released or "",
            spec.licence,
            f"{spec.max_context:,}",
            spec.template,
            "yes" if spec.fim else "",
            *(_longest(find_model(spec.name), card, ram) for card, ram in machines),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _million_tokens()
    lines += ["", "## Where the shapes come from", ""]
    lines += [f"- `{spec.name}` ({spec.hub_id}): {spec.source}." for spec in catalogue().values() if spec.source]
    lines += ["- The others: the config.json of their hub repositories, and the count of their safetensors files."]
    return "\n".join(lines) + "\n"


MILLION = 2**20
"Tokens of tier 9."
COMPARED = ("qwen2.5-coder-1.5b", "qwen3.5-0.8b", "qwen3.5-2b", "qwen3.5-4b")


def _million_tokens() -> list[str]:
    """Compares what a window of a million tokens costs with and without recurrent layers."""
    columns = ["model", "attends", "a step", "GPU", "RAM", "disk", "hidden states"]
    lines = [
        "",
        "## A million tokens with recurrent layers",
        "",
        "Three of four layers of Qwen3.5 are recurrent (Gated DeltaNet). Their time grows with the tokens, not with "
        "their square, and they keep one state a tile in place of keys and values. The layers that attend have heads "
        "of 256. "
        "**Predicted** by `engine plan --model NAME --hardware CARD --ram GIB --tier 9`:",
    ]
    for card, ram in MODEL_CARDS:
        found = find_card(card)
        lines += ["", f"{found.name}, {ram} GiB of RAM:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [_million_row(find_model(name), found, ram) for name in COMPARED]
    return lines


def _million_row(spec: ModelSpec, card: Card, ram: int) -> str:
    row = _planned(spec, card, ram, MILLION)
    attends = f"{spec.attending_layers} of {spec.layers} layers"
    if not row.fits:
        return f"| `{spec.name}` | {attends} | does not fit | | | | |"
    stream = row.layout.stream
    sizes = (row.gpu_peak_bytes, row.host_peak_bytes, row.disk_bytes)
    cells = [f"`{spec.name}`", attends, format_seconds(row.step_seconds / row.windows_per_step)]
    cells += [format_bytes(size) for size in sizes]
    cells += ["on the GPU" if stream is None else {"gpu": "GPU", "host": "RAM", "disk": "disk"}[stream.hidden_home]]
    return f"| {' | '.join(cells)} |"


def _longest(spec: ModelSpec, card: Card, ram: int) -> str:
    # From the longest down: most models fit at one of the last tiers, and each tier is a search of its own.
    for tier in reversed(tiers()):
        row = _planned(spec, card, ram, tier.context)
        if row.fits:
            return f"{_short(tier.context)} in {format_seconds(row.step_seconds / row.windows_per_step)}"
    return "–"


# --- troubleshooting -----------------------------------------------------------------------------------------

_CODES = {
    USAGE: "Wrong usage or configuration (exit code 2)",
    DOES_NOT_FIT: "It does not fit, or a check before the start failed (exit code 3)",
    TRAINING_FAILED: "Training failed (exit code 4)",
    INTERRUPTED: "Interrupted (exit code 130)",
}


def troubleshooting_page() -> str:
    lines = [
        "# Troubleshooting",
        "",
        GENERATED,
        "",
        "`engine doctor` examines machine, repository, model and settings before a run, and says what would go wrong. "
        "Every error is one line: what, where, remedy. `--json` gives its code. Below are all of them; ‹words› stand "
        "for what is filled in. `engine report` collects what a report of a problem needs, with secrets masked; it "
        "sends nothing.",
        "",
    ]
    for code, title in _CODES.items():
        kinds = sorted((kind for kind in all_kinds() if kind.exit_code == code), key=lambda kind: kind.code)
        if kinds:
            lines += [f"## {title}", "", "| code | says | remedy |", "|---|---|---|"]
            lines += [
                f"| {kind.code} | {_template(kind.message)} | {_template(kind.remedy) or '–'} |" for kind in kinds
            ]
            lines.append("")
    lines += [
        "## What is not an error",
        "",
        "- **What libraries print, log or warn is not shown.** A run's is in its `engine.log`, that of other commands "
        "in `libraries.log` in the state directory.",
        "- **The first step is slower than the rest.** It pins its host memory (about 1 s for 2 to 4 GB) and plans its "
        "kernels.",
        "- **A run goes on after the terminal is closed.** It is meant to: `elite-tui monitor` comes back, `engine "
        "stop` ends it.",
        "- **Several messages may say that the step was re-planned.** Memory ran out, the run took the next smaller "
        "layout with the same gradient, and went on ([reliability.md](reliability.md)).",
        "- **Perplexity rises at a long context.** Past the length that a model was trained with its positions are "
        "stretched; a few hundred steps have to teach them.",
        "- **Which attention kernel a run takes** is measured at its start, among those that compute rightly on the "
        "card; `--set stream.attention=efficient` (or flash, cudnn, flash-attn, flash-attn-4) takes another one.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _template(text: str) -> str:
    return _cell(re.sub(r"\{(\w+)\}", r"‹\1›", text))


PAGES = {
    "configuration": configuration_page,
    "commands": commands_page,
    "models": models_page,
    "tiers": tiers_page,
    "troubleshooting": troubleshooting_page,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path, text = ROOT / "docs" / f"{name}.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(f"docs/{name}.md")
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"not current, run `make docs`: {', '.join(stale)}")
    return bool(check and stale)


if __name__ == "__main__":
    raise SystemExit(main())
