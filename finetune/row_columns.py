"""The columns of a row template: whether a source has them, and what stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import yaml
from pydantic import JsonValue

from finetune.errors import DataError, nearest
from finetune.json_text import parse_json_text
from finetune.row_entities import read_entities
from finetune.row_template_types import Column, RowTemplate, TurnsTemplate
from finetune.turns import RowUnusable

_NAMES_SHOWN = 20
_LONGEST_NAME = 60
_EXPECTED = {
    "text": "text",
    "text_or_integer": "text or an integer",
    "text_or_lines": "text or a list of texts",
    "list": "a list, or a list as JSON text",
    "entities": "a list, or a list as JSON text",
}


def check_columns(template: RowTemplate, columns: Mapping[str, str]) -> None:
    """Check that a recipe's `columns` speaks of the template's columns.

    Raises:
        DataError: it names one that the template does not have.
    """
    for name in columns:
        if name not in template.columns:
            raise DataError(
                f"the row template {template.name!r} has no column {name!r}",
                where="columns",
                hint=f"{nearest(name, template.columns)} Written as template column: source column.",
            )


def check_source_columns(template: RowTemplate, columns: Mapping[str, str], seen: set[str], where: str) -> None:
    """Check that a source has the columns that are required or that the recipe names; `seen` stood in some row of it.

    Nothing is said of a source without a single row that could be read: there is something else to say of that.

    Raises:
        DataError: a column is in no row at all; every such column is named.
    """
    wanted = {name: columns.get(name, name) for name, column in template.columns.items() if column.required}
    wanted |= columns
    absent = {name: source for name, source in wanted.items() if source not in seen}
    if not absent or not seen:
        return
    parts = [
        f"no column {source!r}" + (f" to stand for {name!r}" if name != source else "")
        for name, source in absent.items()
    ]
    free = seen - {source for source in wanted.values() if source in seen}
    guesses: dict[str, str] = {}
    for name, source in absent.items():
        guesses[name] = _closest(name, source, free - set(guesses.values())) or "YOUR COLUMN"
    line = yaml.safe_dump(
        {**columns, **guesses}, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6
    )
    nearby = [f"did you mean {guess!r}?" for guess in dict.fromkeys(guesses.values()) if guess in seen]
    hint = " ".join([*nearby, f"write `columns: {line.strip()}` (template column: yours)"])
    raise DataError(
        f"there is {' and '.join(parts)} in any row; the columns are: {_listed(seen)}", where=where, hint=hint
    )


def read_columns(
    template: RowTemplate, values: Mapping[str, JsonValue], columns: Mapping[str, str]
) -> dict[str, JsonValue]:
    """Return what stands in each of the template's columns, "" where an optional one is absent or null.

    Raises:
        RowUnusable: `missing_column`, `null_value`, `wrong_type`, or what is wrong with an entity.
    """
    read = {name: _read_column(column, columns.get(name, name), values) for name, column in template.columns.items()}
    if isinstance(template, TurnsTemplate) and template.entities is not None:
        text = read[template.entities.of]
        for name, column in template.columns.items():
            listed = read[name]
            if column.type == "entities" and isinstance(listed, list):
                read[name] = read_entities(template.entities, listed, str(text))
    return read


def _read_column(column: Column, source: str, values: Mapping[str, JsonValue]) -> JsonValue:
    value = values.get(source)
    if type(value) is str and column.type in ("text", "text_or_integer", "text_or_lines"):
        return value
    if value is None or (value == "" and not column.required):
        if not column.required:
            return ""
        raise _missing(source, values)
    found = _accepted(column, value)
    if found is None:
        expected = _EXPECTED[column.type]
        raise RowUnusable("wrong_type", f"the column {source!r} holds {type(value).__name__}, expected {expected}")
    return found


def _accepted(column: Column, value: JsonValue) -> JsonValue:
    """Return the value in the form that templates know, None where its type is another."""
    if column.type == "text_or_integer":
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
    if column.type == "text_or_lines" and isinstance(value, list):
        lines = [line for line in value if isinstance(line, str)]
        return "\n".join(lines) if len(lines) == len(value) else None
    if column.type in ("list", "entities"):
        return value if isinstance(value, list) else _parsed_list(value)
    return None


def _parsed_list(value: JsonValue) -> list[JsonValue] | None:
    if not isinstance(value, str):
        return None
    try:
        parsed = parse_json_text(value)
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) else None


def _missing(source: str, values: Mapping[str, JsonValue]) -> RowUnusable:
    if source in values:
        return RowUnusable("null_value", f"the column {source!r} is null")
    near = _closest(source, source, values)
    advice = f"; did you mean {near!r}?" if near else ""
    return RowUnusable("missing_column", f"no column {source!r}; there are: {_listed(values)}{advice}")


def _closest(name: str, source: str, there: Iterable[str]) -> str | None:
    """Find the column that was meant by either word, whatever its capitals."""
    folded = {column.casefold(): column for column in sorted(there, reverse=True)}
    near = [*get_close_matches(source.casefold(), folded, n=1), *get_close_matches(name.casefold(), folded, n=1)]
    return folded[near[0]] if near else None


def _listed(names: Iterable[str]) -> str:
    shown = [name[:_LONGEST_NAME] for name in sorted(names)]
    return ", ".join(shown[:_NAMES_SHOWN]) + (", …" if len(shown) > _NAMES_SHOWN else "") if shown else "none"
