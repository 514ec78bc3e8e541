"""Tools and calls: the forms that data sets have become one, and what is no call is set aside."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from evaluation.conversation import ToolCall
from finetune import tool_calls
from finetune.json_text import parse_json_text
from finetune.tool_calls import parse_calls, read_calls, read_tools
from finetune.turns import RowUnusable

EXPECTED = (ToolCall(name="f", arguments={"x": [1, "é"]}),)


@pytest.mark.parametrize(
    "call",
    [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "\\u00e9"]}'}},
        {"type": None, "function": {"name": "f", "arguments": {"x": [1, "é"]}}},
        {"name": "f", "arguments": {"x": [1, "é"]}, "function": None},
        {"type": "function", "name": "f", "arguments": '{"x": [1, "é"]}'},
    ],
)
def test_every_way_of_writing_a_call_comes_out_alike(call: JsonValue) -> None:
    assert read_calls([call], 1) == EXPECTED
    assert read_calls(call, 1) == EXPECTED


@pytest.mark.parametrize("arguments", [None, "", " ", "{}", {}])
def test_a_call_may_have_no_arguments(arguments: JsonValue) -> None:
    assert read_calls([{"name": "f", "arguments": arguments}], 1) == (ToolCall(name="f", arguments={}),)
    assert read_calls([{"name": "f"}], 1) == (ToolCall(name="f", arguments={}),)


def test_no_calls_are_none() -> None:
    assert read_calls([], 1) == ()


@pytest.mark.parametrize(
    "call",
    [
        None,
        "SECRET",
        3,
        [],
        {},
        {"function": "SECRET"},
        {"function": {}},
        {"function": {"name": " "}},
        {"function": {"name": 3}},
        {"type": "retrieval", "function": {"name": "f"}},
        {"name": "f", "arguments": [1]},
        {"name": "f", "arguments": 3},
        {"name": "f", "arguments": "SECRET"},
        {"name": "f", "arguments": "[1]"},
        {"name": "f", "arguments": '{"a": NaN}'},
        {"name": "f", "arguments": '{"a": 1e999}'},
        {"name": "f", "arguments": '{"a": 1, "a": 2}'},
        {"name": "f", "arguments": '{"a": "\\ud800"}'},
        {"name": "f", "arguments": '{"\\ud800": 1}'},
        {"name": "f", "arguments": '{"a": ' + "[" * 41 + "]" * 41 + "}"},
        {"name": "f", "arguments": "[" * 10**5},
        {"name": "f", "arguments": '{"a": ' + "1" * 5000 + "}"},
    ],
)
def test_what_is_no_call_is_set_aside(call: JsonValue) -> None:
    with pytest.raises(RowUnusable, match=r"call 2 of turn 7") as caught:
        read_calls([{"name": "f"}, call], 7)
    assert caught.value.reason == "bad_tool_call"
    assert "SECRET" not in caught.value.detail


@pytest.mark.parametrize("text", ["", "SECRET", "[]", "null", '"f"', "{}", "[3]"])
def test_a_turn_that_is_no_call_is_set_aside(text: str) -> None:
    with pytest.raises(RowUnusable, match="turn 4") as caught:
        parse_calls(text, 4)
    assert caught.value.reason == "bad_tool_call"


def test_a_turn_may_be_one_call_or_several() -> None:
    assert parse_calls('{"name": "f", "arguments": {"x": [1, "é"]}}', 1) == EXPECTED
    assert parse_calls('[{"name": "f", "arguments": {"x": [1, "é"]}}, {"name": "g"}]', 1)[1].name == "g"


def test_tools_come_out_as_functions() -> None:
    function: dict[str, JsonValue] = {"name": "f", "description": "F.", "parameters": {"type": "object"}}
    expected = {"type": "function", "function": function}
    for tool in (function, {**function, "type": "function"}, expected):
        assert read_tools([tool]) == (expected,)


@pytest.mark.parametrize(
    "tools",
    [
        ["SECRET"],
        [{}],
        [{"name": ""}],
        [{"type": "web_search"}],
        [{"function": {"description": "SECRET"}}],
        [{"name": "f"}, {"function": {"name": "f"}}],
    ],
)
def test_what_is_no_tool_is_set_aside(tools: list[JsonValue]) -> None:
    with pytest.raises(RowUnusable) as caught:
        read_tools(tools)
    assert caught.value.reason == "bad_tool"
    assert "SECRET" not in caught.value.detail


def test_the_size_of_tools_and_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_calls, "LONGEST_OUTPUT", 100)
    long: dict[str, JsonValue] = {"name": "f", "arguments": {"x": "a" * 100}}
    with pytest.raises(RowUnusable, match="too_large"):
        read_calls([long], 1)
    with pytest.raises(RowUnusable, match="too_large"):
        read_tools([long])


@pytest.mark.parametrize("text", ["[" * 40 + "1" + "]" * 40, '{"a": 1.5, "b": [null, true, "🙂"]}', "3"])
def test_json_that_a_row_could_hold_is_parsed(text: str) -> None:
    assert parse_json_text(text) is not None
