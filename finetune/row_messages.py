"""Rows that hold a list of messages: who speaks, what is said, and which functions are called."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from evaluation.conversation import Conversation, Message, ToolCall
from finetune.row_template_types import MessagesTemplate
from finetune.sandbox import LONGEST_OUTPUT
from finetune.tool_calls import parse_calls, read_calls, read_tools, tool_name
from finetune.turns import RowUnusable


def listed_conversation(template: MessagesTemplate, read: Mapping[str, JsonValue]) -> Conversation:
    """Make a conversation of the columns' values.

    Raises:
        RowUnusable: a message or a call cannot be read, or a call is of a function that is not listed.
    """
    turns = read[template.list_column]
    assert isinstance(turns, list)
    messages = tuple(_message(template, number, turn) for number, turn in enumerate(turns, start=1))
    system = read[template.system_column] if template.system_column is not None else ""
    if system:
        messages = (Message(role="system", content=str(system)), *messages)
    listed = read[template.tools_column] if template.tools_column is not None else ""
    if not isinstance(listed, list) or not listed:
        return Conversation(messages=messages)
    tools = read_tools(listed)
    _check_called(messages, {tool_name(tool) for tool in tools})
    return Conversation(messages=messages, tools=tools)


def _message(template: MessagesTemplate, number: int, turn: JsonValue) -> Message:
    if isinstance(turn, str) and template.text_turns:
        speaker = template.text_turns[(number - 1) % len(template.text_turns)]
        return Message(role=speaker, content=_content(turn, number))
    if not isinstance(turn, dict):
        raise RowUnusable("turn_not_an_object", f"turn {number} is {type(turn).__name__}")
    refused = [key for key in template.refused_keys if turn.get(key) is not None]
    if refused:
        raise RowUnusable("unsupported_key", f"turn {number} has {refused[0]!r}, which is not rendered")
    if template.role_key not in turn:
        raise RowUnusable("turn_incomplete", f"turn {number} has no {template.role_key!r}")
    word = turn[template.role_key]
    if not isinstance(word, str) or word not in template.roles:
        accepted = ", ".join(sorted(template.roles))
        raise RowUnusable("unknown_role", f"turn {number}: {template.role_key!r} is not one of {accepted}")
    role = template.roles[word]
    calls = _calls(template, number, turn)
    if calls and role != "assistant":
        raise RowUnusable("bad_tool_call", f"turn {number} calls a function and is the {role}'s")
    content = turn.get(template.content_key)
    if template.content_key not in turn and not calls:
        raise RowUnusable("turn_incomplete", f"turn {number} has no {template.content_key!r}")
    if word in template.call_roles:
        calls += parse_calls(_content(content, number), number)
        content = None
    text = "" if content is None and calls else _content(content, number)
    return Message(role=role, content=text, tool_calls=calls) if calls else Message(role=role, content=text)


def _calls(template: MessagesTemplate, number: int, turn: Mapping[str, JsonValue]) -> tuple[ToolCall, ...]:
    key = template.tool_calls_key
    value = turn.get(key) if key is not None else None
    return () if value is None else read_calls(value, number)


def _content(content: JsonValue, number: int) -> str:
    if not isinstance(content, str):
        raise RowUnusable("content_not_text", f"turn {number} holds {type(content).__name__}")
    if len(content) > LONGEST_OUTPUT:
        raise RowUnusable("too_large", f"turn {number} has more than {LONGEST_OUTPUT} characters")
    return content


def _check_called(messages: tuple[Message, ...], names: set[str]) -> None:
    for number, message in enumerate(messages, start=1):
        if any(call.name not in names for call in message.tool_calls):
            raise RowUnusable("unknown_tool", f"turn {number} calls a function that is not among the tools")
