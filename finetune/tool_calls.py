"""Functions that may be called, and calls of them, as OpenAI's chat format and function-calling data sets write them.

A call is {"function": {"name", "arguments"}} or {"name", "arguments"} alone, a function likewise; arguments are an
object or its JSON text.
"""

from __future__ import annotations

from pydantic import JsonValue

from evaluation.conversation import ToolCall
from finetune.json_text import json_text, parse_json_text
from finetune.sandbox import LONGEST_OUTPUT
from finetune.turns import RowUnusable


def read_tools(listed: list[JsonValue]) -> tuple[dict[str, JsonValue], ...]:
    """Return the functions that may be called, each as {"type": "function", "function": …}.

    Raises:
        RowUnusable: `bad_tool`, or `too_large`.
    """
    tools: list[dict[str, JsonValue]] = []
    for number, tool in enumerate(listed, start=1):
        function = _function(tool)
        if function is None or not _is_name(function.get("name")):
            raise RowUnusable("bad_tool", f"tool {number} is not a function with a name")
        tools.append({"type": "function", "function": function})
    _check_size(tools, "the tools")
    names = [tool_name(tool) for tool in tools]
    if len(set(names)) < len(names):
        raise RowUnusable("bad_tool", "two tools have the same name")
    return tuple(tools)


def tool_name(tool: dict[str, JsonValue]) -> str:
    """Return the name of a function that `read_tools` has read."""
    function = tool["function"]
    assert isinstance(function, dict)
    return str(function["name"])


def read_calls(value: JsonValue, turn: int) -> tuple[ToolCall, ...]:
    """Return the calls of one turn: a list, or one alone.

    Raises:
        RowUnusable: `bad_tool_call`, or `too_large`.
    """
    listed = value if isinstance(value, list) else [value]
    calls = tuple(_read_call(call, f"call {number} of turn {turn}") for number, call in enumerate(listed, start=1))
    if calls:
        _check_size([call.arguments for call in calls], f"what turn {turn} calls")
    return calls


def parse_calls(text: str, turn: int) -> tuple[ToolCall, ...]:
    """Return the calls that a turn's text consists of.

    Raises:
        RowUnusable: `bad_tool_call`, or `too_large`.
    """
    try:
        calls = read_calls(parse_json_text(text), turn)
    except ValueError as error:
        raise RowUnusable("bad_tool_call", f"turn {turn} is not the JSON of a call") from error
    if not calls:
        raise RowUnusable("bad_tool_call", f"turn {turn} calls nothing")
    return calls


def _read_call(call: JsonValue, where: str) -> ToolCall:
    function = _function(call)
    if function is None or not _is_name(function.get("name")):
        raise RowUnusable("bad_tool_call", f"{where} is not a function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            # What takes no arguments is also written as an empty text.
            arguments = parse_json_text(arguments) if arguments.strip() else None
        except ValueError as error:
            raise RowUnusable("bad_tool_call", f"the arguments of {where} are not JSON") from error
    if not (arguments is None or isinstance(arguments, dict)):
        raise RowUnusable("bad_tool_call", f"the arguments of {where} are {type(arguments).__name__}, not an object")
    return ToolCall(name=str(function["name"]), arguments=arguments or {})


def _function(value: JsonValue) -> dict[str, JsonValue] | None:
    """Return what describes the function, without what stands around it."""
    if not isinstance(value, dict) or value.get("type", "function") not in ("function", None):
        return None
    if value.get("function") is None:
        return {key: part for key, part in value.items() if key not in ("type", "function")}
    function = value["function"]
    return function if isinstance(function, dict) else None


def _is_name(value: JsonValue) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_size(value: object, what: str) -> None:
    if len(json_text(value)) > LONGEST_OUTPUT:
        raise RowUnusable("too_large", f"{what} take more than {LONGEST_OUTPUT} characters")
