"""docs/recipe.md names every key of the recipe, with what is accepted, the default and the text of the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe

REFERENCE = Path(__file__).parents[2] / "docs" / "recipe.md"
SCHEMA = Recipe.model_json_schema()
Form = dict[str, Any]
Row = tuple[str, str]
"""A key, and its line in a table of the reference."""


def test_reference_and_schema_have_the_same_keys() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z][\w.]*)` \|", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted(key for key, _ in _rows())


def test_every_line_says_what_the_schema_says() -> None:
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    stale = [line for _, line in _rows() if line not in lines]
    assert not stale, "lines that docs/recipe.md should have:\n" + "\n".join(stale)


def _rows() -> list[Row]:
    rows = list(_section("", SCHEMA))
    assert len(rows) > len(SCHEMA["properties"]), "sections are looked into"
    return list(dict.fromkeys(rows))


def _section(prefix: str, section: Form) -> Iterator[Row]:
    for name, form in section["properties"].items():
        alternatives = [form for form in _alternatives(form) if form.get("type") != "null"]
        sections = [(f"{prefix}{name}.", one) for one in alternatives if "properties" in one]
        lists = [_resolved(one["items"]) for one in alternatives if one.get("type") == "array"]
        sections += [(f"{prefix}{name}.N.", one) for one in lists if "properties" in one]
        if not sections:
            yield _row(f"{prefix}{name}", form, alternatives, required=name in section.get("required", ()))
        for inner, one in sections:
            yield from _section(inner, one)


def _row(key: str, form: Form, alternatives: list[Form], *, required: bool) -> Row:
    accepted = " or ".join(_accepted(one) for one in alternatives)
    default = form.get("default")
    shown = "required" if required else "–" if default in (None, "", {}) else f"`{_plain(default)}`"
    return key, f"| `{key}` | {accepted} | {shown} | {form['description']} |"


def _accepted(form: Form) -> str:
    if "const" in form or "enum" in form:
        return ", ".join(f"`{_plain(choice)}`" for choice in form.get("enum", [form.get("const")]))
    if form["type"] == "array":
        return f"a list of {_accepted(_resolved(form['items']))}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    if form["type"] == "object":
        return "names and texts"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {form[name]:g}" for name, sign in signs.items() if name in form and form[name] < 2**31]
    return " ".join((words[form["type"]], ", ".join(bounds))).strip()


def _alternatives(form: Form) -> list[Form]:
    form = _resolved(form)
    inner = form.get("anyOf") or form.get("oneOf")
    return [one for part in inner for one in _alternatives(part)] if inner else [form]


def _resolved(form: Form) -> Form:
    return SCHEMA["$defs"][form["$ref"].rpartition("/")[2]] if "$ref" in form else form


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
