"""Whether a source has the columns of a template, and what is accepted in them."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import JsonValue

from finetune.errors import DataError
from finetune.row_columns import check_columns, check_source_columns, read_columns
from finetune.row_templates import list_row_templates, load_row_template
from finetune.turns import RowUnusable


def problem(template: str, columns: dict[str, str], seen: set[str]) -> str:
    """Return what is wrong with a source."""
    with pytest.raises(DataError) as caught:
        check_source_columns(load_row_template(template), columns, seen, "rows.csv")
    assert str(caught.value).startswith("rows.csv: ")
    return str(caught.value)


def test_a_mapped_column_that_the_template_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'label'"):
        check_columns(load_row_template("classification"), {"labels": "chapter"})


def test_a_required_column_in_no_row_lists_those_there_are_and_the_line_to_write() -> None:
    text = problem("question_answering", {}, {"Question", "answer", "id"})
    assert "no column 'question' in any row; the columns are: Question, answer, id" in text
    assert "did you mean 'Question'? write `columns: {question: Question}`" in text


def test_a_column_without_a_near_name_is_left_for_the_user_to_fill_in() -> None:
    text = problem("question_answering", {}, {"Frage", "Bescheid"})
    assert "no column 'question' and no column 'answer' in any row; the columns are: Bescheid, Frage" in text
    assert "{question: YOUR COLUMN, answer: YOUR COLUMN}" in text
    assert "did you mean" not in text


def test_no_column_is_proposed_twice() -> None:
    text = problem(
        "translation", {"source_language": "lang", "target_language": "lang "}, {"language", "source", "target"}
    )
    assert "{source_language: language, target_language: YOUR COLUMN}" in text


@pytest.mark.parametrize("column", ["question", "context"])
def test_a_column_that_the_recipe_names_must_be_there_even_if_it_is_optional(column: str) -> None:
    columns = {"question": "Frage", column: "Frgae"}
    text = problem("question_answering", columns, {"Frage", "question", "answer", "Text"})
    assert f"no column 'Frgae' to stand for '{column}'" in text
    if column == "question":
        assert "{question: Frage}" in text
    else:
        assert "{question: Frage, context: Text}" in text


def test_a_source_that_has_what_is_asked_for_is_accepted() -> None:
    template = load_row_template("question_answering")
    check_source_columns(template, {}, {"question", "answer"}, "rows.csv")
    check_source_columns(template, {"question": "Frage", "context": "T"}, {"Frage", "answer", "T"}, "rows.csv")


@pytest.mark.parametrize("name", list_row_templates())
def test_every_required_column_is_looked_for_and_no_optional_one(name: str) -> None:
    template = load_row_template(name)
    required = {column for column, spec in template.columns.items() if spec.required}
    check_source_columns(template, {}, required, "rows.csv")
    for column in required:
        assert f"no column {column!r} in any row" in problem(name, {}, required - {column} | {"other"})


def test_nothing_is_said_of_a_source_without_rows() -> None:
    check_source_columns(load_row_template("text"), {"text": "a"}, set(), "rows.csv")


@pytest.mark.parametrize("name", ["question: x", "{question}", "quéstion", "question's", "question #1"])
def test_the_line_to_write_is_yaml_whatever_the_column_is_called(name: str) -> None:
    line = re.search(r"`columns: (.*)` ", problem("question_answering", {}, {name, "answer"}))
    assert line is not None
    assert yaml.safe_load(line[1]) == {"question": name}


def test_a_row_without_a_column_lists_those_there_are() -> None:
    template = load_row_template("classification")
    with pytest.raises(RowUnusable, match=r"there are: TEXT, lable; did you mean 'TEXT'\?") as caught:
        read_columns(template, {"TEXT": "a", "lable": "b"}, {})
    assert caught.value.reason == "missing_column"
    with pytest.raises(RowUnusable, match=r"column_19, …$"):
        read_columns(template, {f"column_{number:02}": 0 for number in range(30)}, {})
    with pytest.raises(RowUnusable, match=r"there are: none$"):
        read_columns(template, {}, {})
    with pytest.raises(RowUnusable, match=r"there are: a{60}$"):
        read_columns(template, {"a" * 500: 1}, {})


@pytest.mark.parametrize(
    ("template", "column", "value", "read"),
    [
        ("question_answering", "answer", 7, "7"),
        ("question_answering", "answer", "7", "7"),
        ("question_answering", "context", None, ""),
        ("persona", "persona", ["a", "b"], "a\nb"),
        ("persona", "dialogue", '["a", "b"]', ["a", "b"]),
        ("persona", "dialogue", [], []),
        ("messages", "tools", "", ""),
        ("messages", "tools", "[]", []),
    ],
)
def test_what_stands_in_a_column_is_read_by_its_type(
    template: str, column: str, value: JsonValue, read: JsonValue
) -> None:
    others: dict[str, JsonValue] = {"question": "q", "answer": "a", "persona": "p", "dialogue": ["d"], "messages": []}
    assert read_columns(load_row_template(template), {**others, column: value}, {})[column] == read
