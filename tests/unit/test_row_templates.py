"""Row templates: bundled ones against golden renderings, and bad rows against their codes."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue
from row_template_goldens import FIXTURES, GOLDENS, golden_text

from evaluation.conversation import Conversation
from finetune.row_templates import (
    RowUnusable,
    list_row_templates,
    load_row_template,
    to_conversation,
)

Values = dict[str, JsonValue]

PLAIN = {"prompt_completion", "text"}
NAMES = list_row_templates()


def convert(name: str, values: Values, columns: dict[str, str] | None = None) -> Conversation:
    """Convert a row by a bundled template."""
    return to_conversation(load_row_template(name), values, columns or {})


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    """Return (role, content) of the messages."""
    return [(message.role, message.content) for message in conversation.messages]


def reason(name: str, values: Values) -> str:
    """Return why a row is set aside, checking that the row's text is not repeated in it."""
    with pytest.raises(RowUnusable) as caught:
        convert(name, values)
    assert "SECRET" not in caught.value.detail
    return caught.value.reason


def test_every_bundled_template_has_a_fixture_and_a_golden_rendering() -> None:
    assert sorted(path.stem for path in FIXTURES.iterdir()) == NAMES
    assert sorted(path.stem for path in GOLDENS.iterdir()) == NAMES
    tasks = {"alpaca", "messages", "sharegpt", "prompt_completion", "question_answering", "classification", "sentiment",
             "ner", "translation", "summarization", "code", "persona", "text"}  # fmt: skip
    assert tasks <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_is_rendered_as_its_golden_text(name: str) -> None:
    text = golden_text(name)
    assert text == (GOLDENS / f"{name}.txt").read_text(encoding="utf-8"), f"meant? see row_template_goldens.py\n{text}"
    assert "⟦" in text
    assert load_row_template(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_has_each_optional_column_and_lacks_it(name: str) -> None:
    rows = [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 2 <= len(rows) <= 4
    optional = [column for column, spec in load_row_template(name).columns.items() if not spec.required]
    for column in optional:
        assert {bool(row.get(column)) for row in rows} == {True, False}, column
    assert any(not line.isascii() for line in (json.dumps(row, ensure_ascii=False) for row in rows))
    layouts = {convert(name, row).layout for row in rows}
    assert layouts == {"plain" if name in PLAIN else "chat"}


@pytest.mark.parametrize("missing", [{}, {"input": ""}, {"input": None, "system": None}])
def test_optional_columns_may_be_absent_empty_or_null(missing: Values) -> None:
    values: Values = {"instruction": "I", "output": "O", **missing}
    assert turns(convert("alpaca", values)) == [("user", "I"), ("assistant", "O")]


def test_columns_may_have_other_names_in_the_source() -> None:
    values: Values = {"diagnosis": "Typhoid", "chapter": 3}
    conversation = convert("classification", values, {"text": "diagnosis", "label": "chapter"})
    assert turns(conversation) == [("user", "Typhoid"), ("assistant", "3")]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("text", {}, "missing_column"),
        ("text", {"text": None}, "null_value"),
        ("text", {"text": 3}, "wrong_type"),
        ("text", {"text": ["SECRET"]}, "wrong_type"),
        ("text", {"text": " \n"}, "empty_answer"),
        ("text", {"text": "SECRET\0"}, "nul_character"),
        ("text", {"text": "a" * (10**7 + 1)}, "too_large"),
        ("classification", {"text": "SECRET", "label": True}, "wrong_type"),
        ("classification", {"text": "SECRET", "label": 1.5}, "wrong_type"),
        ("classification", {"text": "", "label": "x"}, "empty_prompt"),
        ("classification", {"text": "a", "label": "b", "instruction": " "}, "empty_system"),
        ("prompt_completion", {"prompt": "SECRET", "completion": ""}, "empty_answer"),
        ("alpaca", {"instruction": "SECRET", "output": "x", "input": {"a": 1}}, "wrong_type"),
        ("persona", {"persona": ["SECRET", 1], "dialogue": ["a", "b"]}, "wrong_type"),
        ("persona", {"persona": "SECRET", "dialogue": ["a", "b", "c"]}, "no_answer_at_end"),
        ("persona", {"persona": "", "dialogue": ["a", ""]}, "empty_answer"),
        ("persona", {"persona": "a", "dialogue": ["SECRET", 3]}, "turn_not_an_object"),
        ("persona", {"dialogue": ["SECRET", "b"]}, "missing_column"),
        ("ner", {"text": "SECRET", "entities": "SECRET"}, "wrong_type"),
        ("ner", {"text": "SECRET", "entities": '{"a": 1}'}, "wrong_type"),
        ("messages", {"messages": "[1, 1"}, "wrong_type"),
        ("messages", {"messages": '[{"role": "user", "role": "SECRET"}]'}, "wrong_type"),
    ],
)
def test_rows_that_cannot_be_used_have_a_code(name: str, values: Values, expected: str) -> None:
    assert reason(name, values) == expected


U: Values = {"from": "human", "value": "SECRET"}
A: Values = {"from": "gpt", "value": "SECRET"}
S: Values = {"from": "system", "value": "SECRET"}
T: Values = {"from": "tool", "value": "SECRET"}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([], "no_turns"),
        ([U], "no_answer_at_end"),
        ([U, A, U], "no_answer_at_end"),
        ([A], "roles_out_of_order"),
        ([S, A], "roles_out_of_order"),
        ([U, U, A], "roles_out_of_order"),
        ([U, A, A], "roles_out_of_order"),
        ([U, S, A], "roles_out_of_order"),
        ([S, S, U, A], "roles_out_of_order"),
        ([U, T, A], "roles_out_of_order"),
        ([U, A, T, U, A], "roles_out_of_order"),
        ([U, {"from": "gpt", "value": ""}], "empty_answer"),
        ([U, A, {"from": "tool", "value": ""}, A], "empty_tool"),
        ([U, {"from": "gpt", "value": None}], "content_not_text"),
        ([U, {"from": "gpt", "value": [{"type": "text", "text": "SECRET"}]}], "content_not_text"),
        ([U, {"from": "gpt", "value": "a" * (10**7 + 1)}], "too_large"),
        ([U, {"from": "bard", "value": "SECRET"}], "unknown_role"),
        ([U, {"from": None, "value": "SECRET"}], "unknown_role"),
        ([U, {"value": "SECRET"}], "turn_incomplete"),
        ([U, {"from": "gpt"}], "turn_incomplete"),
        ([U, "SECRET"], "turn_not_an_object"),
        ([U, {**A, "weight": 0}], "unsupported_key"),
        ("SECRET", "wrong_type"),
        ([{"from": "human", "value": "a\0"}, A], "nul_character"),
    ],
)
def test_lists_of_turns_that_cannot_be_used_have_a_code(listed: JsonValue, expected: str) -> None:
    assert reason("sharegpt", {"conversations": listed}) == expected


def test_a_system_column_beside_a_system_turn_is_out_of_order() -> None:
    assert reason("sharegpt", {"conversations": [S, U, A], "system": "s"}) == "roles_out_of_order"


CALL: Values = {"function": {"name": "f", "arguments": '{"x": "SECRET"}'}}
ASKED: Values = {"role": "user", "content": "SECRET"}
CALLING: Values = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERED: Values = {"role": "tool", "content": "SECRET"}
SAID: Values = {"role": "assistant", "content": "SECRET"}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([ASKED, CALLING, SAID], "roles_out_of_order"),
        ([ASKED, CALLING, ASKED, SAID], "roles_out_of_order"),
        ([ASKED, CALLING, ANSWERED], "no_answer_at_end"),
        ([ASKED, {"role": "assistant", "content": None}], "content_not_text"),
        ([ASKED, {"role": "assistant"}], "turn_incomplete"),
        ([ASKED, {"role": "assistant", "tool_calls": []}], "turn_incomplete"),
        ([ASKED, {"role": "assistant", "content": "", "tool_calls": None}], "empty_answer"),
        ([{**ASKED, "tool_calls": [CALL]}, SAID], "bad_tool_call"),
        ([ASKED, {**CALLING, "tool_calls": "SECRET"}], "bad_tool_call"),
        ([ASKED, {**CALLING, "content": ["SECRET"]}], "content_not_text"),
        ([ASKED, {**CALLING, "content": "a\0"}], "nul_character"),
        ([ASKED, {**SAID, "function_call": {"name": "f"}}], "unsupported_key"),
    ],
)
def test_calls_that_cannot_be_used_have_a_code(listed: JsonValue, expected: str) -> None:
    assert reason("messages", {"messages": listed}) == expected


@pytest.mark.parametrize("listed", [[ASKED, CALLING], [ASKED, CALLING, ANSWERED, CALLING, ANSWERED, ANSWERED, SAID]])
def test_a_turn_may_call_a_function_instead_of_saying_something(listed: list[JsonValue]) -> None:
    conversation = convert("messages", {"messages": listed})
    assert [message.content for message in conversation.messages if message.tool_calls] == [""] * listed.count(CALLING)
    assert conversation.messages[1].tool_calls[0].arguments == {"x": "SECRET"}


@pytest.mark.parametrize("name", ["g", "F"])
def test_a_call_of_what_is_not_among_the_tools_is_set_aside(name: str) -> None:
    values: Values = {"messages": [ASKED, CALLING], "tools": [{"name": name}]}
    assert reason("messages", values) == "unknown_tool"
    assert convert("messages", {**values, "tools": [{"name": "f"}, {"name": name}]}).tools[0] == {
        "type": "function",
        "function": {"name": "f"},
    }


@pytest.mark.parametrize("text", ["SECRET", "[]", "3", '{"arguments": {}}', None])
def test_a_function_call_turn_must_be_a_call(text: JsonValue) -> None:
    turns_: list[JsonValue] = [U, {"from": "function_call", "value": text}]
    expected = "content_not_text" if text is None else "bad_tool_call"
    assert reason("sharegpt", {"conversations": turns_}) == expected


TEMPLATES = {name: load_row_template(name) for name in NAMES}
WORDS = ("user", "assistant", "gpt", "human", "function_call", "tool", "Anna", '[{"name": "f"}]', '{"x": 1}', "", "\0")
KEYS = (
    "role",
    "from",
    "content",
    "value",
    "text",
    "label",
    "start",
    "end",
    "tool_calls",
    "function",
    "name",
    "arguments",
)


def any_json(draw: random.Random, depth: int = 0) -> JsonValue:
    """Make up a JSON value of the words that templates know."""
    kind = draw.randrange(8 if depth < 4 else 6)
    if kind >= 6:
        values = [any_json(draw, depth + 1) for _ in range(draw.randrange(4))]
        return values if kind == 6 else dict(zip(draw.sample(KEYS, len(values)), values, strict=True))
    leaves: list[JsonValue] = [None, True, draw.randrange(-1, 9), 0.5, draw.choice(WORDS), draw.choice(WORDS)]
    return leaves[kind]


def spoilt(value: JsonValue, draw: random.Random) -> JsonValue:
    """Put any JSON in the place of a part of a value, however deep."""
    if draw.random() < 0.08:
        return any_json(draw)
    if isinstance(value, dict):
        return {key: spoilt(part, draw) for key, part in value.items() if draw.random() > 0.02}
    return [spoilt(part, draw) for part in value] if isinstance(value, list) else value


def fate(name: str, values: Values) -> str:
    """Return the reason why a row is set aside, or "" for a conversation that can be written, read and trained on."""
    try:
        conversation = to_conversation(TEMPLATES[name], values, {})
    except RowUnusable as unusable:
        return unusable.reason
    last = conversation.messages[-1]
    assert last.role == "assistant"
    assert last.content.strip() or last.tool_calls
    assert Conversation.model_validate_json(conversation.model_dump_json()) == conversation
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_any_json_in_any_column_becomes_a_conversation_or_is_set_aside(name: str) -> None:
    draw = random.Random(name)
    rows = [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    columns = sorted(TEMPLATES[name].columns)
    spoilt_rows = [{key: spoilt(value, draw) for key, value in draw.choice(rows).items()} for _ in range(300)]
    made_up = [{column: any_json(draw) for column in columns if draw.random() < 0.8} for _ in range(100)]
    fates = Counter(fate(name, values) for values in (*spoilt_rows, *made_up))
    assert all(reason == "" or reason.isidentifier() for reason in fates)
    assert fates[""] > 20, "the good ones are tried as well"
    assert len(fates) > 3, "and several ways of being bad"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    text=st.text() | st.from_regex(r"\{[{%#]?.*[}%#]?\}"), name=st.sampled_from(["text", "alpaca", "classification"])
)
def test_any_text_is_kept_as_it_is(text: str, name: str) -> None:
    columns = TEMPLATES[name].columns
    if not text.strip() or "\0" in text:
        assert fate(name, dict.fromkeys(columns, text)) != ""
        return
    conversation = to_conversation(TEMPLATES[name], dict.fromkeys(columns, text), {})
    expected = f"{text}\n\n{text}" if name == "alpaca" else text
    assert [m.content for m in conversation.messages if m.role == "user"] == ([] if name == "text" else [expected])
    assert {m.content for m in conversation.messages if m.role != "user"} == {text}


def test_labels_are_named_where_there_are_classes() -> None:
    named = {name for name in list_row_templates() if load_row_template(name).label_column is not None}
    assert named == {"classification", "sentiment"}
    assert {load_row_template(name).text_column for name in named} == {"text"}
