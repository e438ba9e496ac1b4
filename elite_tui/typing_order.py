"""Delays actions until pending typing has been handled.

The App handles a key with priority as soon as it is read, while the letters before it may still wait in the
queue of their field, and the field's own messages in those of its ancestors. Without this, a quick `ctrl+q` would
quit before the last letters are in the draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual.app import App
    from textual.dom import DOMNode


def after_typing(app: App[Any], then: Callable[[], object]) -> None:
    """Calls `then` once the focused widget and its ancestors have emptied their message queues."""
    focused = app.focused
    chain = [] if focused is None else [focused, *(node for node in focused.ancestors if node is not app)]
    # Each twice: once for the messages in its queue, once for those that it posts to itself while handling them.
    _pass_through(app, [node for node in chain for _ in range(2)], then)


def _pass_through(app: App[Any], nodes: Sequence[DOMNode], then: Callable[[], object]) -> None:
    for index, node in enumerate(nodes):
        if node.call_later(_pass_through, app, nodes[index + 1 :], then):
            return
    app.call_later(then)
