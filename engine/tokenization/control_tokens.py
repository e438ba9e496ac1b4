"""Separates a tokenizer's added tokens into control tokens and plain text.

The flag `special` is unreliable. Qwen2.5-Coder's <|fim_prefix|> and <tool_call> are not flagged, and some tokenizers
flag runs of spaces. A token counts as text only if people write it without the model in mind.
"""

from __future__ import annotations

import re
from typing import Any

_WORD = re.compile(r"[\w ]+")
_HTML_TAG = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|em|h[1-6]|hr|i|li|ol|p|pre|strong|sub|sup|s|table|tbody|td|tfoot|th|thead|tr"
    r"|u|ul)>"
)
"HTML tags that Gemma adds as tokens, and was trained on wherever a page had them."


def is_plain_text(content: str, *, special: bool) -> bool:
    """Tells whether text may encode to an added token.

    White space always may, because CodeGen, Phi and Gemma add runs of it. Words and HTML tags may unless they are
    flagged, because they extend the vocabulary. All other tokens are control tokens, such as "<|im_start|>", "[INST]"
    and "|||EMAIL|||".

    Args:
        content: The token's text in tokenizer.json.
        special: Its flag there.
    """
    shown = content.replace("▁", " ")
    if shown.isspace():
        return True
    return not special and bool(_WORD.fullmatch(shown) or _HTML_TAG.fullmatch(shown))


def control_tokens(stored: dict[str, Any]) -> dict[int, str]:
    """Returns id → text of the added tokens that no text may encode to.

    Args:
        stored: The content of a tokenizer.json.
    """
    return {
        int(token["id"]): str(token["content"])
        for token in stored.get("added_tokens") or ()
        if not is_plain_text(token["content"], special=bool(token.get("special")))
    }
