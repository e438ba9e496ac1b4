"""Renders the model card (README.md) and Ollama's Modelfile of an export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine import __version__, regular_file
from engine.errors import one_line
from engine.export.commands import BASE

if TYPE_CHECKING:
    from engine.config import TrainingSection
    from engine.export.gguf_tokenizer import GgufTokenizer
    from engine.export.source import Source

_SECTIONS = (
    "Held-out perplexity",
    "Held-out functions",
    "With text of the repository in the prompt",
    "General code and text",
    "Data",
    "Predicted and measured",
    "Cost",
)
"""Sections taken from the run's report. Its other parts name folders of the training machine."""
_PICTURE = re.compile(r"^!\[.*\]\(.*\)[ \t]*$\n?", re.MULTILINE)
_OLLAMA = {
    "chatml": "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}END\n{{ end }}<|im_start|>assistant\n",
    "plain": '{{ range .Messages }}### {{ if eq .Role "user" }}User{{ else if eq .Role "assistant" }}Assistant'
    '{{ else if eq .Role "system" }}System{{ else }}Tool{{ end }}\n{{ .Content }}'
    '{{ if eq .Role "assistant" }}END{{ end }}\n\n{{ end }}### Assistant\n',
}
"""Ollama's form of the chat templates that are known by name, which it cannot make of the Jinja in the file."""
_LIBRARIES = {"adapter": "peft", "merged": "transformers"}
"""Those that are not llama.cpp."""


def render_card(source: Source, target: str, dtype: str | None, weights_from: str, files: list[str]) -> str:
    """Renders the card as Markdown, with the front matter that the hub reads.

    Args:
        source: The run.
        target: adapter, merged, gguf, gguf-adapter or gguf-base.
        dtype: Format of the weights; None for an adapter.
        weights_from: Description of the base that the adapter was merged into; "" for an adapter.
        files: Names of the files beside the card.
    """
    use = f"## Use\n\n{_usage(source, target, files)}"
    if source.is_base:
        what = f"{_code(source.base_name)}, in one {dtype} GGUF file. {weights_from}"
        title = f"# {_plain(source.base_name)}"
        return (
            "\n\n".join([_front_matter(source, target), title, what, use, f"## Licence\n\n{_licence(source)}"]) + "\n"
        )
    parts = [_front_matter(source, target), f"# {_plain(source.name)}", _what(source, target, dtype, weights_from)]
    report = _report_sections(source.run.report_path)
    parts += [f"## {title}\n\n{report[title]}" for title in _SECTIONS if title in report]
    parts += ["## Settings", _settings(source), use, "## Licence", _licence(source)]
    return "\n\n".join(parts) + "\n"


def render_modelfile(source: Source, file: str, tokenizer: GgufTokenizer, context: int) -> str:
    """Renders Ollama's Modelfile: plain completion, and fill-in-the-middle if the tokenizer has tokens for it."""
    pre, suf, mid = (tokenizer.fim.get(key) for key in ("FIM_PRE_ID", "FIM_SUF_ID", "FIM_MID_ID"))
    prompt = "{{ .Prompt }}"
    if pre is not None and suf is not None and mid is not None:
        text = [tokenizer.tokens[number] for number in (pre, suf, mid)]
        prompt = (
            f"{{{{ if .Suffix }}}}{text[0]}{{{{ .Prompt }}}}{text[1]}{{{{ .Suffix }}}}{text[2]}"
            "{{ else }}{{ .Prompt }}{{ end }}"
        )
    stops = [tokenizer.tokens[number] for name, number in tokenizer.special.items() if name == "eos"]
    lines = [f"# {_plain(source.name)}: ollama create {_plain(source.name)} -f Modelfile", f"FROM ./{file}"]
    if (named := source.config.data.chat_template) in _OLLAMA:
        turn_end = "<|im_end|>" if named == "chatml" else "".join(stops[:1])
        lines.append(f'TEMPLATE """{_OLLAMA[named].replace("END", turn_end)}"""')
        stops = [*dict.fromkeys([turn_end, *stops])]
    elif not tokenizer.chat_template:
        # With a chat template in the file, Ollama generates its own template from that.
        lines.append(f'TEMPLATE """{prompt}"""')
    # Ollama takes what stands between the first and the last quotation mark as it is.
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, f"PARAMETER num_ctx {min(context, 32768)}"]) + "\n"


def _front_matter(source: Source, target: str) -> str:
    licence = source.spec.licence if source.spec.licence != "unknown" else "other"
    lines = [
        "---",
        f"base_model: {json.dumps(source.base_name, ensure_ascii=False)}",
        f"library_name: {_LIBRARIES.get(target, 'llama.cpp')}",
        f"license: {licence}",
        "pipeline_tag: text-generation",
        f"tags: [code, {'base' if source.is_base else 'lora' if source.is_adapter else 'full-fine-tuning'}, elite-tui]",
        "---",
    ]
    return "\n".join(lines)


def _what(source: Source, target: str, dtype: str | None, weights_from: str) -> str:
    method = "with LoRA" if source.is_adapter else "in every weight"
    text = f"{_code(source.base_name)}, fine-tuned {method} on a code repository by elite-tui {__version__}. "
    text += {
        "adapter": "This is the adapter alone, in PEFT's format: it is used with its base model.",
        "merged": f"The whole model, in {dtype} safetensors that transformers loads.",
        "gguf": f"The whole model, in one {dtype} GGUF file for llama.cpp and what is built on it.",
        "gguf-adapter": "This is the adapter alone, as a GGUF file that llama.cpp adds to its base as it runs.",
    }[target]
    return f"{text} {weights_from}".rstrip()


def _settings(source: Source) -> str:
    config = source.config
    lora, training = config.lora, config.training
    rate = training.rate_in_words(source.run.planned_rate())
    rows = [("base model", _code(source.base_name)), ("trained in", config.model.precision)]
    if source.is_adapter:
        kind = "".join(name for name, on in ((", rsLoRA", lora.rslora), (", DoRA", lora.dora)) if on)
        rows.append(("adapter", f"rank {lora.rank}, alpha {lora.alpha:g}{kind}, on {', '.join(lora.targets)}"))
    rows += [
        ("optimiser", f"{training.optimizer}, rate {rate}, {training.schedule}"),
        ("epochs", _epochs(training)),
        ("seed", str(training.seed)),
    ]
    if source.changes.yarn_factor is not None:
        rows.append(("rotary positions", f"stretched {source.changes.yarn_factor:g} times (YaRN)"))
    if source.changes.kv_heads is not None:
        rows.append(("key and value heads", f"pooled to {source.changes.kv_heads}"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {one_line(value)} |" for name, value in rows)])


def _epochs(training: TrainingSection) -> str:
    if training.hours is not None or training.stages:
        return "by its schedule" + (f" for {training.hours:g} hours" if training.hours else "")
    return f"{training.passes:g}" + (f", at most {training.max_steps} steps" if training.max_steps else "")


def _usage(source: Source, target: str, files: list[str]) -> str:
    name = next((file for file in files if file.endswith(".gguf")), "")
    if target == "gguf-adapter":
        return (
            f"    llama-server -m {BASE} --lora {name}\n\n"
            f"{BASE} is the base in GGUF: `engine export RUN --to gguf-base` writes it. Ollama adds the adapter by a "
            f"Modelfile of two lines, `FROM ./{BASE}` and `ADAPTER ./{name}`."
        )
    if source.is_base:
        return f"    llama-server -m {name} --lora {_plain(source.name)}-lora.gguf"
    if target == "gguf":
        return (
            f"    llama-cli -m {name} -p 'def main(' -n 64\n"
            f"    ollama create {_plain(source.name)} -f Modelfile && ollama run {_plain(source.name)}"
        )
    lines = ["from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast", ""]
    if target == "adapter":
        lines, text = ["from peft import PeftModel", *lines], ""
        if source.spec.name == "demo":
            lines.insert(0, "from engine.assets import asset  # elite-tui carries the demo model")
            lines.append('where = asset("demo-model")')
        else:
            lines.append(f"where = {source.base_name!r}{'  # the path of its folder' if source.spec.path else ''}")
        if renames := source.base_folder.renames:
            lines[lines.index("")] = "from transformers import AutoConfig\n"
            lines.append(
                "config = AutoConfig.from_pretrained(where).get_text_config(decoder=True)  # without its tower"
            )
            if (tied := source.base_folder.config.get("tie_word_embeddings")) is not None:
                lines.append(f"config.tie_word_embeddings = {bool(tied)}")
            text = f", config=config, key_mapping={dict(renames)!r}"
        lines += [
            f'base = AutoModelForCausalLM.from_pretrained(where{text}, dtype="auto")',
            'model = PeftModel.from_pretrained(base, ".")',
        ]
        if source.changes.yarn_factor is not None or source.changes.kv_heads is not None:
            lines.insert(-1, "# base_changes.json says what was done to the base first; --to merged does it for you.")
    else:
        lines.append('model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")')
    lines += [
        # AutoTokenizer would let a class replace what tokenizer.json says.
        'tokenizer = PreTrainedTokenizerFast.from_pretrained(".")',
        'ids = tokenizer("def main(", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))",
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _licence(source: Source) -> str:
    base = _code(source.base_name)
    if source.spec.licence == "unknown":
        return f"The licence of {base} is not stated in its files: look it up before you pass this on."
    if source.is_base:
        return f"{base} is under {_code(source.spec.licence)}."
    return (
        f"{base} is under {_code(source.spec.licence)}, which holds for this model too. "
        "It was trained on code whose own licence may set terms besides."
    )


def _report_sections(path: Path) -> dict[str, str]:
    """Returns the report's sections by title; none where there is no report."""
    try:
        text = regular_file.read_text(path)
    except (OSError, ValueError):
        return {}
    pieces = text.split("\n## ")[1:]
    sections = {title.strip(): body.strip() for title, _, body in (piece.partition("\n") for piece in pieces)}
    # Charts stay in the run's folder.
    return {title: _PICTURE.sub("", body).strip() for title, body in sections.items()}


def _plain(text: str) -> str:
    return one_line(text)


def _code(text: str) -> str:
    return f"`{one_line(text).replace('`', chr(39))}`"
