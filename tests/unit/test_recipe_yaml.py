"""The YAML of a recipe: what is read, up to which size, and on which line a refusal points."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from finetune.errors import Problem, RecipeError
from finetune.recipe_document import Node, dotted, plain
from finetune.recipe_yaml import parse_document, parse_override_value, parse_plain_scalar

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co", "Zl", "Zp")), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**28), 10**28)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS.filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


def refusal(text: str) -> Problem:
    """Read what cannot be read past, and return the one problem."""
    with pytest.raises(RecipeError) as caught:
        parse_document(text, "r.yaml")
    (problem,) = caught.value.problems
    assert problem.hint
    return problem


def found(text: str) -> list[tuple[str, str, int | None]]:
    """Read what can be read past: key, what is wrong, line."""
    _, findings = parse_document(text, "r.yaml")
    assert all(finding.hint for finding in findings)
    return [(dotted(finding.path), finding.what, finding.line) for finding in findings]


def read(text: str) -> dict[str, JsonValue]:
    """Read a text in which nothing is wrong."""
    root, findings = parse_document(text, "r.yaml")
    value = plain(root)
    assert findings == []
    assert isinstance(value, dict)
    return value


@given(st.dictionaries(TEXTS.filter(lambda key: key != "<<"), VALUES, max_size=3))
@settings(max_examples=40, deadline=None)
def test_json_is_read_as_json(value: dict[str, JsonValue]) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert json.dumps(read(text)) == json.dumps(value)
    node, findings = parse_override_value(text, "--set x")
    assert (findings, json.dumps(plain(node))) == ([], json.dumps(value))


def nested(levels: int) -> str:
    return "a: " + "[" * (levels - 1) + "1" + "]" * (levels - 1)


def values(count: int) -> str:
    """Return a mapping that holds a list, so many values with both of them."""
    return "a: [" + "1, " * (count - 2) + "]"


LIMITS: tuple[tuple[Callable[[int], str], int, str, str], ...] = (
    (nested, 20, "r.yaml:1", "nested more than 20 deep"),
    (values, 2_000, "r.yaml:1", "more than 2,000 values"),
    (lambda letters: "k" * letters + ": 1", 200, "r.yaml:1", "a key of more than 200 characters"),
)


@pytest.mark.parametrize(("written", "limit", "where", "what"), LIMITS)
def test_a_limit_is_kept_to_the_last_one(written: Callable[[int], str], limit: int, where: str, what: str) -> None:
    assert read(written(limit))
    problem = refusal(written(limit + 1))
    assert (problem.where, problem.what) == (where, what)


def test_keys_and_items_count_as_one_value_with_what_they_hold() -> None:
    lines = [f"k{number}: {{a: [1]}}" for number in range(666)]  # three values a line, and the whole
    assert read("\n".join([*lines, "last: 1"]))
    assert refusal("\n".join([*lines, "one: 1", "two: 2", "three: 3"])).where == "r.yaml:668"


@pytest.mark.parametrize("letter", ["#", "é"])
def test_a_megabyte_is_counted_in_bytes_before_anything_is_read(letter: str) -> None:
    # The `@` ends the reading at once: what is looked at here is only which of the two refuses.
    most = "@" + "#" * (999_999 % len(letter.encode())) + letter * (999_999 // len(letter.encode()))
    assert len(most.encode()) == 1_000_000
    assert refusal(most).what.startswith("not YAML")
    large = refusal(most + "#")
    assert (large.where, large.what) == ("r.yaml", "larger than 1 MB")


def test_a_number_has_at_most_thirty_digits() -> None:
    assert read("a: " + "9" * 30) == {"a": 10**30 - 1}
    assert found("b: 1\na: " + "9" * 31) == [("a", "a number of 31 digits", 2)]
    assert found("a: 1e999\nb: -.inf\nc: .nan") == [
        ("a", "a number too large to be stored", 1),
        ("b", "-.inf is not a finite number", 2),
        ("c", ".nan is not a finite number", 3),
    ]
    with pytest.raises(ValueError, match=r"^\.inf is not"):
        parse_plain_scalar(".inf")


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
def test_an_empty_recipe_is_told_so(text: str) -> None:
    assert (refusal(text).where, refusal(text).what) == ("r.yaml:1", "the recipe is empty")


@pytest.mark.parametrize("text", ["\n- a: 1\n", "\nword\n", "\n'a: 1'\n", "# first\nnull\n"])
def test_a_recipe_is_a_mapping(text: str) -> None:
    assert (refusal(text).where, refusal(text).what) == ("r.yaml:2", "a recipe is a mapping of keys")


def test_one_document_to_a_file() -> None:
    assert read("--- \na: 1\n...\n") == {"a": 1}
    problem = refusal("a: 1\nb: 2\n---\nc: 3\n")
    assert (problem.where, problem.what) == ("r.yaml:3", "a second document begins here")


def test_every_node_knows_the_line_of_its_key_or_item() -> None:
    root, _ = parse_document("# a comment\na:\n  b:\n    1\nc:\n  - x\n  - y: 2\n", "r.yaml")
    assert root == Node(
        {
            "a": Node({"b": Node(1, 3)}, 2),
            "c": Node([Node("x", 6), Node({"y": Node(2, 7)}, 7)], 5),
        },
        2,
    )


def test_what_an_override_sets_lies_on_no_line() -> None:
    node, findings = parse_override_value("{a: [1, {b: x}]}", "--set k")
    inner = Node([Node(1, 0, "--set k"), Node({"b": Node("x", 0, "--set k")}, 0, "--set k")], 0, "--set k")
    assert (node, findings) == (Node({"a": inner}, 0, "--set k"), [])
    assert parse_override_value("", "--set k") == (Node(None, 0, "--set k"), [])
    assert parse_override_value("yes", "--set k") == (Node("yes", 0, "--set k"), [])


def test_an_override_that_is_no_yaml_is_named_without_a_line() -> None:
    for text in ("[", "a: b: c", "\x07", "--- 1\n--- 2"):
        with pytest.raises(RecipeError) as caught:
            parse_override_value(text, "--set k")
        assert [problem.where for problem in caught.value.problems] == ["--set k"]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (
            "a: 1\nb: [1,\n  2\nc: 3",
            "r.yaml:4",
            "not YAML: expected ',' or ']', but got ':' while parsing a flow sequence",
        ),
        ("a: 1\n\tb: 2", "r.yaml:2", "a tab where YAML wants spaces"),
        ("a: 1\nb: c: d", "r.yaml:2", "not YAML: a second `:` in this line, or wrong indentation"),
        ("a: 'open\n\nb: 2\n", "r.yaml:4", "not YAML: found unexpected end of stream while scanning a quoted scalar"),
        ("a: 1\n%YAML 2.0\n---\nb: 1", "r.yaml:2", "not YAML: found incompatible YAML document"),
        ("%YAML 2.0\n---\na: 1", "r.yaml:1", "not YAML: found incompatible YAML document (version 1.* is required)"),
        ("\n\na: \x07", "r.yaml:3", "a character that YAML does not allow"),
        ("\n\x07", "r.yaml:2", "a character that YAML does not allow"),
        ("\x07", "r.yaml:1", "a character that YAML does not allow"),
        ("a:\n  ? {b: 1}\n  : 2", "r.yaml:2", "a key that is not text"),
        ("a: 1\nb: {{c}}", "r.yaml:2", "a key that is not text"),
    ],
)
def test_what_cannot_be_read_is_told_on_its_line(text: str, where: str, what: str) -> None:
    problem = refusal(text)
    assert problem.where == where
    assert problem.what.startswith(what)
    assert "None" not in problem.what


def test_aliases_are_refused_once_each_and_stand_for_nothing() -> None:
    assert found("a: &x 1\nb: *x\nc: [*x, *y]\nd: *x") == [
        ("a", "the anchor &x is not accepted", 1),
        ("b", "the alias *x is not accepted", 2),
        ("c.1", "the alias *y is not accepted", 3),
    ]
    root, _ = parse_document("a: &x {b: 1}\nc: *x", "r.yaml")
    assert plain(root) == {"a": {"b": 1}, "c": None}


def test_many_aliases_are_as_many_values() -> None:
    assert refusal("a: &x 1\nb: [" + "*x, " * 2_000 + "]").what == "more than 2,000 values"


def test_a_merge_key_is_refused_and_merges_nothing() -> None:
    root, findings = parse_document("a:\n  b: 1\n  <<: {c: 2}\n", "r.yaml")
    assert [(finding.what, finding.line) for finding in findings] == [("a merge key is not accepted", 3)]
    assert plain(root) == {"a": {"b": 1}}


def test_tags_and_anchors_are_refused_on_values_lists_mappings_and_keys() -> None:
    assert found("a: !!int 3\nb: !x [1]\nc: !!python/object:os.system {d: 1}\n!!str e: 1\n&f g: &h [1]\n") == [
        ("a", "the YAML tag !!int is not accepted", 1),
        ("b", "the YAML tag !x is not accepted", 2),
        ("c", "the YAML tag !!python/object:os.system is not accepted", 3),
        ("", "the YAML tag !!str is not accepted", 4),
        ("", "the anchor &f is not accepted", 5),
        ("g", "the anchor &h is not accepted", 5),
    ]


def test_of_a_key_that_is_written_twice_the_first_is_kept() -> None:
    text = "a: 1\nb:\n  c: 2\n  d: 3\n  c: 4\na: 5\n'a': 6"
    assert found(text) == [
        ("b.c", "written twice, on line 3 and on line 5", 5),
        ("a", "written twice, on line 1 and on line 6", 6),
        ("a", "written twice, on line 1 and on line 7", 7),
    ]
    assert plain(parse_document(text, "r.yaml")[0]) == {"a": 1, "b": {"c": 2, "d": 3}}


def test_a_key_without_a_value_is_told_and_null_and_quotes_are_values() -> None:
    assert found("a:\nb: [x, ]\nc: {d: }") == [("a", "has no value", 1), ("c.d", "has no value", 3)]
    assert read("a: null\nb: ''\nc: ~\nd: []") == {"a": None, "b": "", "c": None, "d": []}


def test_only_what_stands_unquoted_is_a_number_or_a_boolean() -> None:
    plainly = "[1, 1.5, true, false, null, yes, 010, 0x1F, 1:30, 2026-01-01]"
    assert read(f"a: {plainly}") == {"a": [1, 1.5, True, False, None, "yes", 10, "0x1F", "1:30", "2026-01-01"]}
    assert read("a: ['1', \"true\", 'null']\nb: |\n  1\nc: >-\n  true") == {
        "a": ["1", "true", "null"],
        "b": "1\n",
        "c": "true",
    }
    assert read("1: a\ntrue: b\nnull: c") == {"1": "a", "true": "b", "null": "c"}


def test_control_characters_are_refused_where_quotes_hide_them() -> None:
    text = 'a: "x\\ay"\n"b\\0": 1\nc: "\\ud800"\nd: "\\t\\n"'
    what = "an invisible control character"
    assert found(text) == [("a", what, 1), ("", what, 2), ("c", what, 3)]
    assert plain(parse_document(text, "r.yaml")[0]) == {"a": "xy", "b": 1, "c": "", "d": "\t\n"}


def test_no_control_character_can_stand_unquoted() -> None:
    controls = [
        chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0xD800, 0xDFFF) if chr(code) not in "\t\n\r\x85"
    ]
    assert {refusal(f"a: x{letter}y").what for letter in controls} == {"a character that YAML does not allow"}
    assert {read(f"a: x{line_end} y")["a"] for line_end in ("\n", "\r", "\r\n", "\x85")} == {"x y"}
