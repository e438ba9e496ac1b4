"""Chat templates that write what those of known models write, and the turns in their text told by regular expressions.

The models' own templates stand under the models' licences, so these were written for the tests. Where the environment
variable CHAT_TEMPLATES names a folder with files such as qwen3.jinja, the tests read those in their place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CALLS = """{% for call in m.tool_calls or [] %}{{ '' if loop.first and not m.content else '\\n' }}<tool_call>
{{ '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\\n' }}</tool_call>\
{% endfor %}"""
_RESULT = """{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}\
{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>{{ '\\n' }}{% endif %}"""
_TOOLS = """{% if tools %}<|im_start|>system
{{ messages[0].content + '\\n' if messages[0].role == 'system' else '' }}# Tools
{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}<|im_end|>{{ '\\n' }}{% endif %}"""
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
_QWEN = (
    _TOOLS
    + """{% for m in messages %}{% if m.role == 'tool' %}"""
    + _RESULT
    + """{% elif not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role + '\\n' }}\
{% if m.role == 'assistant' %}THOUGHT{{ CONTENT }}"""
    + _CALLS
    + """{% else %}{{ m.content }}{% endif %}<|im_end|>{{ '\\n' }}{% endif %}{% endfor %}"""
)
_LAST = """{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"""
_QWEN3 = _QWEN.replace(
    "THOUGHT",
    """{% if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}<think>
{{ (m.reasoning_content or '').strip('\\n') }}{{ '\\n' }}</think>{{ '\\n\\n' }}{% endif %}""",
)
_QWEN3_5 = (
    _LAST
    + _QWEN.replace(
        "THOUGHT",
        """{% if loop.index0 > ns.last %}<think>
{{ (m.reasoning_content or '') | trim }}{{ '\\n' }}</think>{{ '\\n\\n' }}{% endif %}""",
    ).replace("CONTENT", "m.content | trim")
    + _PROMPT.replace("'\\n'", "'\\n<think>\\n'")
)
_LLAMA = """{{ bos_token }}{% for m in messages %}<|start_header_id|>\
{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>{{ '\\n\\n' }}\
{% if loop.first and tools %}{% for tool in tools %}{{ tool | tojson }}{{ '\\n\\n' }}{% endfor %}{% endif %}\
{% if m.tool_calls %}{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}\
{{ (m.tool_calls[0].function.arguments | tojson) + '}' }}{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>\
{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"""
_GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}\
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}\
{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}\
{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ (first if loop.first else '') + (m.content | trim) }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
_MISTRAL = """{% set last = namespace(at=0) %}{% if messages[0].role == 'system' %}{% set told = messages[0].content %}\
{% set rest = messages[1:] %}{% else %}{% set told = none %}{% set rest = messages %}{% endif %}\
{% for m in rest %}{% if m.role == 'user' %}{% set last.at = loop.index0 %}{% endif %}{% endfor %}\
{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}{% if tools and loop.index0 == last.at %}\
[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]\
{{ (told + '\\n\\n' if told and loop.index0 == last.at else '') + m.content }}[/INST]{% elif m.tool_calls %}\
[TOOL_CALLS][{% for call in m.tool_calls %}{{ call.function | tojson }}{{ '' if loop.last else ', ' }}{% endfor %}]\
{{ eos_token }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}[TOOL_RESULTS]\
{{ {'content': m.content} | tojson }}[/TOOL_RESULTS]{% endif %}{% endfor %}"""
_MINISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}[SYSTEM_PROMPT]{{ messages[0].content }}\
[/SYSTEM_PROMPT]{% endif %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS]\
{{ m.content }}[/TOOL_RESULTS]{% elif m.role == 'assistant' %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}\
[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endif %}\
{% endfor %}"""
_GPT_OSS = """<|start|>system<|message|>You are a model.
{{ strftime_now('%Y-%m-%d') }}<|end|>{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}\
<|start|>developer<|message|># Instructions

{{ messages[0].content }}<|end|>{% else %}{% set rest = messages %}{% endif %}\
{% set called = namespace(name='') %}{% for m in rest %}{% if m.role == 'assistant' %}\
{% if 'tool_calls' in m %}{% set called.name = m.tool_calls[0].function.name %}<|start|>assistant to=functions.\
{{ called.name }}<|channel|>commentary json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>\
{% elif loop.last and not add_generation_prompt %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>\
{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}\
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% elif m.role == 'tool' %}\
<|start|>functions.{{ called.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>\
{% else %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|start|>assistant{% endif %}"""
_PHI = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
_CHATML = """{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>{{ '\\n' }}{% endfor %}"""
_SMOLLM = (
    """{% if messages[0].role != 'system' %}<|im_start|>system
You are a helpful AI assistant.<|im_end|>{{ '\\n' }}{% endif %}"""
    + _CHATML
    + _PROMPT
)
_OWN = """{% macro said(m) %}{{ '(' + m.role[:1] + ') ' }}{% if m.role == 'assistant' %}{% generation %}\
{{ m.content | trim }}{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}\
<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}
{% endmacro %}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}\
{% for m in messages %}{{ said(m) }}{% endfor %}"""


@dataclass(frozen=True)
class Family:
    """A template, its control tokens, and how a turn looks that the model writes.

    Attributes:
        source: Its Jinja.
        control: Tokens of the tokenizer.
        turn: The turn is the only group.
        tools: Whether it writes calls of tools.
        thinks: Whether it writes reasoning.
        file: Of the model's own template, in the folder that CHAT_TEMPLATES names.
    """

    source: str
    control: tuple[str, ...]
    turn: str
    tools: bool = True
    thinks: bool = False
    file: str = ""

    def text(self) -> str:
        """The template: the model's own where it is at hand."""
        folder = os.environ.get("CHAT_TEMPLATES")
        path = Path(folder) / self.file if folder and self.file else None
        return path.read_text(encoding="utf-8") if path is not None and path.exists() else self.source


_QWEN_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|endoftext|>"),
    *("<tool_response>", "</tool_response>"),
)
_CHATML_TURN = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
_MISTRAL_TOKENS = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
)
FAMILIES: Mapping[str, Family] = {
    "qwen2.5": Family(
        _QWEN.replace("THOUGHT", "").replace("CONTENT", "m.content") + _PROMPT,
        _QWEN_TOKENS,
        _CHATML_TURN,
        file="qwen2_5.jinja",
    ),
    "qwen3": Family(
        _LAST + _QWEN3.replace("CONTENT", "m.content") + _PROMPT,
        _QWEN_TOKENS,
        _CHATML_TURN,
        thinks=True,
        file="qwen3.jinja",
    ),
    "qwen3.5": Family(
        _QWEN3_5,
        _QWEN_TOKENS,
        r"<\|im_start\|>assistant\n(?:<think>\n)?(.*?<\|im_end\|>)",
        thinks=True,
        file="qwen3_5_think.jinja",
    ),
    "llama3": Family(
        _LLAMA,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)",
        file="llama3_1.jinja",
    ),
    "mistral": Family(
        _MISTRAL,
        _MISTRAL_TOKENS,
        r"\[/(?:INST|TOOL_RESULTS)\](.*?</s>)",
        file="mistral.jinja",
    ),
    "ministral": Family(
        _MINISTRAL,
        (*_MISTRAL_TOKENS, "[ARGS]", "[THINK]", "[/THINK]"),
        r"\[/(?:INST|TOOL_RESULTS)\](.*?</s>)",
    ),
    "gemma3": Family(
        _GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        r"<start_of_turn>model\n(.*?<end_of_turn>)",
        tools=False,
        file="gemma3.jinja",
    ),
    "gpt-oss": Family(
        _GPT_OSS,
        ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"),
        r"<\|start\|>assistant((?:<\|channel\|>analysis<\|message\|>[^<]*(?:<(?!\|end\|>)[^<]*)*<\|end\|>"
        r"<\|start\|>assistant)?.*?(?:<\|end\|>|<\|return\|>|<\|call\|>))",
        thinks=True,
        file="gptoss.jinja",
    ),
    "phi": Family(
        _PHI,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        r"<\|assistant\|>\n(.*?<\|end\|>(?:\n<\|endoftext\|>$)?)",
        tools=False,
        file="phi3_5.jinja",
    ),
    "smollm2": Family(_SMOLLM, _QWEN_TOKENS, _CHATML_TURN, tools=False, file="smollm2.jinja"),
    "chatml": Family(_CHATML + _PROMPT, _QWEN_TOKENS, _CHATML_TURN, tools=False),
    "own": Family(_OWN, _QWEN_TOKENS, r"\(a\) (.*?<\|im_end\|>)"),
}
