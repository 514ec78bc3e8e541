"""Every text of a conversation: messages, and what stands in tool calls and tools, keys and whole numbers among it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import JsonValue

from evaluation.conversation import Conversation, Message, ToolCall
from finetune.turns import RowUnusable

DEEPEST = 64
"""Objects and lists in each other that are looked into."""

Change = Callable[[str], str]


def texts_of(conversation: Conversation) -> Iterator[str]:
    """Yield every text that `with_texts` would change, in the same order.

    Raises:
        RowUnusable: `nested_too_deep`.
    """
    for message in conversation.messages:
        yield message.content
        for call in message.tool_calls:
            yield call.name
            yield from _texts_in(call.arguments, 0)
    for tool in conversation.tools:
        yield from _texts_in(tool, 0)


def with_texts(conversation: Conversation, change: Change) -> Conversation:
    """Return the conversation with each text changed; a number becomes a text where its digits change.

    Raises:
        RowUnusable: `nested_too_deep`, or `keys_alike` where two keys of an object became the same.
    """
    messages = tuple(_changed_message(message, change) for message in conversation.messages)
    tools = tuple(_changed_object(tool, change, 0) for tool in conversation.tools)
    return conversation.model_copy(update={"messages": messages, "tools": tools})


def _changed_message(message: Message, change: Change) -> Message:
    content = change(message.content)
    calls = tuple(
        ToolCall(name=change(call.name), arguments=_changed_object(call.arguments, change, 0))
        for call in message.tool_calls
    )
    return message.model_copy(update={"content": content, "tool_calls": calls})


def _texts_in(value: JsonValue, depth: int) -> Iterator[str]:
    _refuse_deep(depth)
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from _texts_in(child, depth + 1)
    elif isinstance(value, list):
        for child in value:
            yield from _texts_in(child, depth + 1)
    elif _is_whole(value):
        yield str(value)


def _changed(value: JsonValue, change: Change, depth: int) -> JsonValue:
    _refuse_deep(depth)
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return _changed_object(value, change, depth)
    if isinstance(value, list):
        return [_changed(child, change, depth + 1) for child in value]
    if _is_whole(value):
        digits = str(value)
        changed = change(digits)
        return value if changed == digits else changed
    return value


def _changed_object(fields: dict[str, JsonValue], change: Change, depth: int) -> dict[str, JsonValue]:
    changed = {change(key): _changed(child, change, depth + 1) for key, child in fields.items()}
    if len(changed) != len(fields):
        raise RowUnusable("keys_alike", "two keys of a tool or tool call are the same once personal data is replaced")
    return changed


def _is_whole(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_deep(depth: int) -> None:
    if depth > DEEPEST:
        raise RowUnusable("nested_too_deep", f"a tool or tool call has more than {DEEPEST} objects in each other")
