"""Row templates: bundled ones against golden conversations, bad rows against their codes, bad templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue

from evaluation.conversation import Conversation
from finetune.errors import DataError
from finetune.row_templates import (
    RowUnusable,
    check_columns,
    list_row_templates,
    load_row_template,
    parse_row_template,
    to_conversation,
)

Values = dict[str, JsonValue]

# One row of each bundled template, and the turns it becomes; a first element 'plain' is the layout.
GOLDEN: dict[str, tuple[Values, list[tuple[str, str]]]] = {
    "alpaca": (
        {"instruction": "Translate.", "input": "  chat\n", "output": "cat ", "system": "Be brief.", "id": 7},
        [("system", "Be brief."), ("user", "Translate.\n\n  chat\n"), ("assistant", "cat ")],
    ),
    "classification": (
        {"text": "Typhoid", "label": "Infections", "instruction": "Which chapter?"},
        [("system", "Which chapter?"), ("user", "Typhoid"), ("assistant", "Infections")],
    ),
    "messages": (
        {"messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": "U"},
                      {"role": "assistant", "content": "A", "name": "x"}, {"role": "tool", "content": "T"},
                      {"role": "assistant", "content": "B", "tool_calls": None}]},
        [("system", "S"), ("user", "U"), ("assistant", "A"), ("tool", "T"), ("assistant", "B")],
    ),
    "prompt_completion": (
        {"prompt": "def f(x):\n    ", "completion": "return x\n"},
        [("user", "def f(x):\n    "), ("assistant", "return x\n")],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}], "system": "S"},
        [("system", "S"), ("user", "U"), ("assistant", "A")],
    ),
    "text": ({"text": "Once {{ upon }} <b>a</b>.\n"}, [("assistant", "Once {{ upon }} <b>a</b>.\n")]),
}  # fmt: skip
PLAIN = {"prompt_completion", "text"}


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


def test_every_bundled_template_has_a_golden_conversation() -> None:
    assert list_row_templates() == sorted(GOLDEN)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_row_becomes_the_golden_conversation(name: str) -> None:
    values, expected = GOLDEN[name]
    conversation = convert(name, values)
    assert turns(conversation) == expected
    assert conversation.layout == ("plain" if name in PLAIN else "chat")
    assert load_row_template(name).name == name


@pytest.mark.parametrize("missing", [{}, {"input": ""}, {"input": None, "system": None}])
def test_optional_columns_may_be_absent_empty_or_null(missing: Values) -> None:
    values: Values = {"instruction": "I", "output": "O", **missing}
    assert turns(convert("alpaca", values)) == [("user", "I"), ("assistant", "O")]


def test_columns_may_have_other_names_in_the_source() -> None:
    values: Values = {"diagnosis": "Typhoid", "chapter": 3}
    conversation = convert("classification", values, {"text": "diagnosis", "label": "chapter"})
    assert turns(conversation) == [("user", "Typhoid"), ("assistant", "3")]


def test_a_mapped_column_that_the_template_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'label'"):
        check_columns(load_row_template("classification"), {"labels": "chapter"})


def test_a_missing_column_lists_those_there_are() -> None:
    with pytest.raises(RowUnusable, match=r"there are: lable, text; did you mean 'lable'\?") as caught:
        convert("classification", {"text": "a", "lable": "b"})
    assert caught.value.reason == "missing_column"
    with pytest.raises(RowUnusable, match=r"column_19, …$"):
        convert("text", {f"column_{number:02}": 0 for number in range(30)})


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


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(DataError, match=r"did you mean 'alpaca'.*classification"):
        load_row_template("alpacca")


def test_a_template_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(OWN, encoding="utf-8")
    conversation = to_conversation(load_row_template(str(path)), {"q": "Q?", "options": ["x", "y"], "a": "x"}, {})
    assert turns(conversation) == [("user", "Q?\n- x\n- y"), ("assistant", "x")]


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_row_template(str(path))


OWN = r"""
name: options
description: Multiple choice.
kind: chat
columns:
  q: {doc: "The question."}
  options: {type: list, doc: "The choices."}
  a: {doc: "The answer."}
turns:
  - {role: user, content: "{{ q }}{% for option in options %}\n- {{ option }}{% endfor %}"}
  - {role: assistant, content: "{{ a }}"}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: options", "nmae: options", "nmae: Extra inputs"),
        ("kind: chat", "kind: chatt", "template: Input tag 'chatt'"),
        ("kind: chat", "kind: chat\nkind: plain", "the key 'kind' stands twice"),
        ("kind: chat", "kind: [", "not YAML"),
        ("{{ a }}", "{{ b }}", "not among `columns`: b"),
        ("{{ a }}", "yes", "columns that nothing reads: a"),
        ("{{ a }}", "{{ a", "not Jinja"),
        ("{{ a }}", "{{ a.b }}", "Getattr is not accepted"),
        ("role: assistant", "role: bot", "turns.1.role"),
        ("role: assistant", "role: assistant, when: z", "not among `columns`: z"),
        ("kind: chat", "kind: chat\nlabel_column: z", "not among `columns`: z"),
        ("kind: chat", "kind: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_template_that_is_not_accepted_says_what_and_where(old: str, new: str, message: str) -> None:
    assert old in OWN
    with pytest.raises(DataError) as caught:
        parse_row_template(OWN.replace(old, new, 1), where="own.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("own.yaml: ")


def test_labels_are_named_where_there_are_classes() -> None:
    named = {name for name in list_row_templates() if load_row_template(name).label_column is not None}
    assert named == {"classification"}
    assert load_row_template("classification").text_column == "text"
