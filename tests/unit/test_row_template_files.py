"""Template files: found by name or path, and refused with the line and key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.row_template_files import load_row_template, parse_row_template
from finetune.row_templates import to_conversation


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(DataError, match=r"did you mean 'alpaca'.*classification"):
        load_row_template("alpacca")


def test_a_template_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(OWN, encoding="utf-8")
    conversation = to_conversation(load_row_template(str(path)), {"q": "Q?", "options": ["x", "y"], "a": "x"}, {})
    assert [(m.role, m.content) for m in conversation.messages] == [("user", "Q?\n- x\n- y"), ("assistant", "x")]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        load_row_template(str(path))
    path.write_bytes(b"#" * 100_001)
    with pytest.raises(DataError, match="larger than"):
        load_row_template(str(path))


def test_a_file_that_is_not_there_gets_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text(OWN, encoding="utf-8")
    with pytest.raises(DataError, match=r"no such row template file\n.*did you mean 'options.yaml'"):
        load_row_template(str(tmp_path / "option.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(DataError, match="not a plain file"):
        load_row_template(str(tmp_path / "folder.yaml"))
    with pytest.raises(DataError, match="looked in"):
        load_row_template("nowhere/at/all.yaml")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text(OWN, encoding="utf-8-sig")
    assert load_row_template(str(path)).name == "options"


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


ENTITIES = "entities: {of: q, text: [text], label: [label]}\nturns:"
LISTED = r"""
name: chats
description: Chats.
kind: messages
columns:
  turns: {type: list, doc: "The turns."}
list_column: turns
role_key: who
content_key: what
roles: {a: user, b: assistant}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: options", "nmae: options", ":2: nmae: unknown key; did you mean 'name'?"),
        ("name: options", "", "name: is missing"),
        ("name: options", "qqq: options", "qqq: unknown key; accepted: name, description, columns"),
        ("name: options", "name: Options", ":2: name: String should match"),
        ("kind: chat", "kind: chatt", ":4: kind: 'chatt' is none of them; did you mean 'chat'?"),
        ("kind: chat", "", "kind: is missing; accepted: chat, plain, messages"),
        ("kind: chat", "kind: chat\nkind: plain", "own.yaml:5: not YAML that is accepted: the key 'kind' stands twice"),
        ("kind: chat", "kind: [", "not YAML"),
        ("kind: chat", "kind: \x01", "not YAML"),
        ("kind: chat", "? [a]\n: chat", "a key that is not a word"),
        ("kind: chat", "kind: !!python/object/apply:os.getcwd []", "own.yaml:4: not YAML"),
        ("kind: chat", "kind: &a chat\ntext_column: *a", "own.yaml:5: the alias *a is not accepted"),
        ("kind: chat", "kind: chat\nlabel_column: z", "not among `columns`: z"),
        ("kind: chat", "kind: chat\nentities: {of: q, text: [t], label: [l]}", "belong together"),
        ("{type: list, doc", "{type: entities, doc", "belong together"),
        ("{type: list, doc", "{type: lists, doc", ":7: columns.options.type: Input should be 'text'"),
        ("{type: list, doc", "{tpye: list, doc", ":7: columns.options.tpye: unknown key; did you mean 'type'?"),
        ("{{ a }}", "{{ b }}", "not among `columns`: b"),
        ("{{ a }}", "yes", "columns that nothing reads: a"),
        ("{{ a }}", "{{ a", "not Jinja"),
        ("{{ a }}", "{{ a.b }}", "Getattr is not accepted"),
        ("role: assistant", "role: bot", ":11: turns.1.role"),
        ("role: assistant", "rule: assistant", ":11: turns.1.rule: unknown key; did you mean 'role'?"),
        ("role: assistant", "role: assistant, when: z", "not among `columns`: z"),
    ],
)
def test_a_template_that_is_not_accepted_says_what_and_where(old: str, new: str, message: str) -> None:
    assert old in OWN
    assert message in refusal(OWN.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("list_column: turns", "list_column: turn", "not among `columns`: turn"),
        ("list_column: turns", "list_column: turns\ntools_column: tools", "not among `columns`: tools"),
        ("type: list, ", "", "the column 'turns' must be of the type list"),
        ("list_column: turns", "list_column: turns\nsystem_column: turns", "must be of the type text or text_or_lines"),
        ("b: assistant", "b: asistant", "roles.b"),
        ("roles:", "call_roles: [c]\nroles:", "does not give to the assistant: c"),
        ("roles:", "call_roles: [a]\nroles:", "does not give to the assistant: a"),
        ("roles:", "list_colum: x\nroles:", "list_colum: unknown key; did you mean 'list_column'?"),
        ("roles:", "entities: {of: turns, text: [t], label: [l]}\nroles:", "entities: unknown key"),
    ],
)
def test_a_template_of_messages_says_what_is_wrong(old: str, new: str, message: str) -> None:
    assert parse_row_template(LISTED, where="own.yaml").kind == "messages"
    assert old in LISTED
    assert message in refusal(LISTED.replace(old, new, 1))


def test_tools_stand_in_a_list() -> None:
    text = LISTED.replace("columns:", "columns:\n  s: {doc: x}").replace("role_key", "tools_column: s\nrole_key")
    assert "the column 's' must be of the type list" in refusal(text)


def test_entities_stand_in_a_text() -> None:
    text = OWN.replace("{type: list, doc", "{type: entities, doc").replace("turns:", ENTITIES, 1)
    assert parse_row_template(text, where="own.yaml").kind == "chat"
    assert "'options' must be of the type text" in refusal(text.replace("of: q", "of: options"))
    assert "entities.oof: unknown key; did you mean 'of'?" in refusal(text.replace("of: q", "oof: q"))


@pytest.mark.parametrize("text", ["", "- a\n", "word", "[[[[", "1: 2018-13-45", "a: b: c"])
def test_a_file_that_is_no_template_at_all_is_refused(text: str) -> None:
    assert refusal(text)


def test_nesting_ends_before_it_takes_long() -> None:
    for text in ("{" * 5000, "[" * 11 + "]" * 11):
        assert "own.yaml:1: nested more than 10 deep" in refusal(text)


def refusal(text: str) -> str:
    """Return why a template is refused; it begins with the file."""
    with pytest.raises(DataError) as caught:
        parse_row_template(text, where="own.yaml")
    assert str(caught.value).startswith("own.yaml:")
    return str(caught.value)
