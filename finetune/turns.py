"""What makes a row unusable, and the order in which speakers may take turns."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.conversation import Layout, Message, Role

_EMPTY: dict[Role, str] = {
    "system": "empty_system",
    "user": "empty_prompt",
    "assistant": "empty_answer",
    "tool": "empty_tool",
}
# Who may follow whom in a chat; None is the beginning.
_MAY_FOLLOW: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


class RowUnusable(Exception):
    """A row that no conversation can be made of: it is set aside, with a short code and what exactly."""

    def __init__(self, reason: str, detail: str) -> None:
        """Take the code, the same for all rows of a kind, and a sentence without the row's text."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_turns(messages: Sequence[Message], layout: Layout) -> None:
    """Check that somebody answers last, that turns alternate, and that each has text or calls a function.

    What is called answers before anyone else speaks.

    Raises:
        RowUnusable: `no_turns`, `no_answer_at_end`, `roles_out_of_order`, `empty_…` or `nul_character`.
    """
    if not messages:
        raise RowUnusable("no_turns", "the list of turns is empty")
    if messages[-1].role != "assistant":
        raise RowUnusable("no_answer_at_end", f"the last turn is the {messages[-1].role}'s")
    # A plain text may be the assistant's alone.
    expected = _MAY_FOLLOW[None if layout == "chat" else "user"]
    for number, message in enumerate(messages, start=1):
        if layout == "chat" and message.role not in expected:
            named = " or ".join(expected)
            raise RowUnusable("roles_out_of_order", f"turn {number} is {message.role}, expected {named}")
        if not (message.tool_calls or message.content.strip()):
            raise RowUnusable(_EMPTY[message.role], f"turn {number} ({message.role}) has no text")
        if "\0" in message.content:
            raise RowUnusable("nul_character", f"turn {number} ({message.role}) holds a NUL character")
        expected = ("tool",) if message.tool_calls else _MAY_FOLLOW[message.role]
