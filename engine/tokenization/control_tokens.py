"""Tells apart a tokenizer's added tokens: those that control a model, and those that are plain text.

The flag `special` does not tell: Qwen2.5-Coder's <|fim_prefix|> and <tool_call> are not flagged, and some tokenizers
flag runs of spaces. A token counts as text only if a person may write it without a thought of the model.
"""

from __future__ import annotations

import re
from typing import Any

_WORD = re.compile(r"[\w ]+")
_HTML_TAG = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|em|h[1-6]|hr|i|li|ol|p|pre|strong|sub|sup|s|table|tbody|td|tfoot|th|thead|tr"
    r"|u|ul)>"
)
"Gemma adds these, and saw them wherever a page held them."


def is_plain_text(content: str, *, special: bool) -> bool:
    """Whether an added token may be found in text.

    White space always may: CodeGen, Phi and Gemma add runs of it. Words and HTML tags may unless they are flagged:
    somebody extended the vocabulary by them. All else is control: "<|im_start|>", "[INST]", "|||EMAIL|||".

    Args:
        content: The token's text, as tokenizer.json holds it.
        special: Its flag there.
    """
    shown = content.replace("▁", " ")
    if shown.isspace():
        return True
    return not special and bool(_WORD.fullmatch(shown) or _HTML_TAG.fullmatch(shown))


def control_tokens(stored: dict[str, Any]) -> dict[int, str]:
    """Id → text of the added tokens that no text may become.

    Args:
        stored: The content of a tokenizer.json.
    """
    return {
        int(token["id"]): str(token["content"])
        for token in stored.get("added_tokens") or ()
        if not is_plain_text(token["content"], special=bool(token.get("special")))
    }
