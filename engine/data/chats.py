"""Conversations of a data set as tokens, by the model's chat template or one that the configuration names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.assets import asset
from engine.data.conversations import Conversation
from engine.errors.data import CHAT_TEMPLATE_UNUSABLE
from engine.home_folder import expand_home
from engine.tokenization.chat_encoder import EncodedConversation, encode_conversations
from engine.tokenization.chat_template import ChatTemplate, TemplateSyntaxError
from engine.tokenization.chat_turns import ConversationRenderer, Piece
from engine.tokenization.plain_text import Part

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

TEMPLATES = ("chatml", "plain")
"""Known by name: for a model with ChatML's tokens, and for any other one."""
REVISION = 4
"Raised when the same conversation would be encoded otherwise; part of every store's key."
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_CUT = "[{count:,} characters of output left out]"
_ROUNDS = 4
"Times that more output is left out, until the rest fits. Then all of it is."


def find_template(tokenizer: Any, encoder: Encoder, named: str) -> ChatTemplate | None:
    """The template of conversations; None where the tokenizer has none and none is named.

    Args:
        tokenizer: With a chat_template, or without.
        encoder: Of it.
        named: data.chat_template.

    Raises:
        EliteError: CHAT_TEMPLATE_UNUSABLE.
    """
    own = getattr(tokenizer, "chat_template", None)
    source: str | Mapping[str, str] | None = own if isinstance(own, (str, dict)) and own else None
    name = "of the model's tokenizer"
    if named:
        source, name = read_template(named, encoder), named
    if source is None:
        return None
    tokens = {key: str(value) for key in _SPECIAL if (value := getattr(tokenizer, key, None)) is not None}
    tokens = {"bos_token": "", "eos_token": encoder.decode([encoder.end]), **tokens}
    try:
        return ChatTemplate(name, source, tokens)
    except TemplateSyntaxError as error:
        raise CHAT_TEMPLATE_UNUSABLE(name=name, problem=error, known=", ".join(TEMPLATES)) from error


def read_template(named: str, encoder: Encoder) -> str:
    """The Jinja of a template that the configuration names.

    One that is known by name begins and ends texts as the tokenizer does, whatever its settings call these tokens.

    Raises:
        EliteError: CHAT_TEMPLATE_UNUSABLE.
    """
    if named in TEMPLATES:
        text = asset("chat_templates", f"{named}.jinja").read_text(encoding="utf-8")
        begin, end = json.dumps(encoder.decode(encoder.first)), json.dumps(encoder.decode([encoder.end]))
        return text.replace("bos_token", begin).replace("eos_token", end)
    try:
        if not named.endswith(".jinja"):
            raise ValueError("it is neither known by this name nor a .jinja file")
        return expand_home(named).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise CHAT_TEMPLATE_UNUSABLE(name=named, problem=problem, known=", ".join(TEMPLATES)) from error


class Chats:
    """Renders and encodes conversations.

    Args:
        encoder: Of the model's tokenizer.
        template: How conversations are written down.

    Raises:
        EliteError: CHAT_TEMPLATE_UNUSABLE.
    """

    def __init__(self, encoder: Encoder, template: ChatTemplate) -> None:
        self._encoder, self.template = encoder, template
        control = encoder.plain_text.control.values()
        if template.name == "chatml" and not {"<|im_start|>", "<|im_end|>"} <= set(control):
            problem = "the model's tokenizer has no <|im_start|> and <|im_end|>"
            raise CHAT_TEMPLATE_UNUSABLE(name=template.name, problem=problem, known=", ".join(TEMPLATES))
        self._renderer = ConversationRenderer(template, list(control))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what determines the tokens, the tokenizer apart."""
        told = json.dumps([REVISION, self.template.source, sorted(self.template.tokens.items())])
        return hashlib.sha256(told.encode()).hexdigest()

    def render(self, conversation: Conversation) -> list[Piece]:
        """Renders a conversation.

        Raises:
            RenderError, SplitError: as ConversationRenderer.
        """
        return self._renderer.render(
            conversation.messages,
            conversation.tools,
            conversation.learnt if conversation.weights is None else conversation.weights,
            now=conversation.date,
        )

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime | None = None,
    ) -> list[int]:
        """Token ids that the model is given to write the next answer.

        Raises:
            RenderError, SplitError: as ConversationRenderer.
        """
        [found] = encode_conversations(self._encoder.plain_text, [self._renderer.prompt(messages, tools, now)])
        return [int(token) for token in found.ids]

    def request_prompt(self) -> list[int]:
        """Token ids that a model is given to write a conversation's first request itself.

        Raises:
            RenderError, SplitError: as ConversationRenderer.
        """
        [found] = encode_conversations(self._encoder.plain_text, [self._renderer.request_prompt()])
        return [int(token) for token in found.ids]

    def encode(self, conversations: Sequence[Conversation], limit: int | None) -> list[EncodedConversation]:
        """Encodes conversations.

        Args:
            conversations: Each renders.
            limit: Tokens above which the output of tools is shortened, the oldest first, as far as that helps. None:
                nothing is.
        """
        found = encode_conversations(self._encoder.plain_text, [self.render(one) for one in conversations])
        if limit is None:
            return found
        return [
            self._shortened(conversation, encoded, limit) if len(encoded.ids) > limit else encoded
            for conversation, encoded in zip(conversations, found, strict=True)
        ]

    def _shortened(self, conversation: Conversation, encoded: EncodedConversation, limit: int) -> EncodedConversation:
        """The conversation without as much of its tools' output, the oldest first, as it is too long."""
        whole = encoded
        texts = [str(message.get("content") or "") for message in conversation.messages]
        outputs = [
            number
            for number, message in enumerate(conversation.messages)
            if message["role"] == "tool" and len(texts[number]) > len(_CUT) + 8
        ]
        sizes = list(map(len, self._encoder.plain_text.encode([Part(texts[number], False) for number in outputs])))
        gone = 0
        for turn in range(_ROUNDS + 1):
            excess = len(encoded.ids) - limit
            while gone < len(outputs) and (excess > 0 or turn == _ROUNDS):
                # What stands in an output's place has tokens too; how many is a guess.
                excess -= sizes[gone] - len(_CUT) // 3
                gone += 1
            cut = set(outputs[:gone])
            messages = tuple(
                {**message, "content": _CUT.format(count=len(texts[number]))} if number in cut else message
                for number, message in enumerate(conversation.messages)
            )
            short = replace(conversation, messages=messages)
            [encoded] = encode_conversations(self._encoder.plain_text, [self.render(short)])
            if len(encoded.ids) <= limit or gone == len(outputs):
                break
        return replace(encoded, shortened=True) if len(encoded.ids) <= limit else whole


def encode_continued(encoder: Encoder, conversations: Sequence[Conversation]) -> list[EncodedConversation]:
    """Encodes prompts with what goes on with them, which is predicted, and the end of the text.

    The two are encoded apart: when the model writes, the tokens of its prompt do not change any more.
    """
    parts = [
        Part(str(message["content"]), number == 0)
        for one in conversations
        for number, message in enumerate(one.messages)
    ]
    encoded = encoder.plain_text.encode(parts)
    first, end = np.array(encoder.first, dtype=np.uint32), np.array([encoder.end], dtype=np.uint32)
    made = []
    for one, asked, answer in zip(conversations, encoded[::2], encoded[1::2], strict=True):
        before = len(first) + len(asked)
        ids = np.concatenate([first, asked, answer, end])
        weights = None if one.weights is None else np.full(len(ids), one.weights[1])
        turns = np.array([before], dtype=np.int64)
        made.append(EncodedConversation(ids, np.arange(len(ids)) >= before, turns, weights))
    return made
