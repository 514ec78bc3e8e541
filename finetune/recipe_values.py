"""Says what is wrong with one value of a recipe, and what would be accepted in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from finetune.errors import nearest
from finetune.recipe_accepted import Accepted
from finetune.recipe_document import Node, Scalar
from finetune.recipe_yaml import parse_plain_scalar

LONGEST_SHOWN = 60

PATTERN_WORDS = {
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case, as `sha256sum` prints them",
    r"^[a-z0-9][a-z0-9._-]{0,99}$": "lower-case letters, digits, `.`, `_` and `-`, at most 100, "
    "a letter or digit first",
    r"^[A-Z]{2}$": "two capitals, as in US or DE",
}

_LIST = "write a list, each item after `- `"

_FULL_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}

# Words that YAML 1.1 and people take for booleans.
_BOOLEAN_WORDS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def wrong_value(content: Scalar | dict[str, Node] | list[Node], alternatives: Sequence[Accepted]) -> tuple[str, str]:
    """What is wrong with a value that none of the alternatives accepts, and a hint."""
    if isinstance(content, dict):
        return "is a section of keys", _wanted(alternatives)
    if isinstance(content, list):
        return ("is an empty list" if not content else "is a list"), _wanted(alternatives)
    if content is None:
        return "has no value", f"{_wanted(alternatives)}, or delete the line"
    if isinstance(content, str):
        return _wrong_text(content, alternatives)
    return _wrong_number(content, alternatives)


def shown(content: Scalar) -> str:
    """A value as it may be repeated in a message: short, on one line, text in double quotes."""
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _wrong_text(text: str, alternatives: Sequence[Accepted]) -> tuple[str, str]:
    types = {form.type for form in alternatives}
    choices = _choices(alternatives)
    number = _as_number(text, types)
    if number:
        return f"{shown(text)} is text", f"write {number}"
    if "boolean" in types:
        meant = _BOOLEAN_WORDS.get(text.lower(), text.lower())
        sure = meant in ("true", "false")
        return f"{shown(text)} is text", f"write {meant}" if sure else "write true or false"
    if choices:
        items = [choice for form in alternatives for choice in _item_choices(form)]
        if text in items:
            return f"{shown(text)} stands alone where a list is wanted", f"write [{text}]"
        guess = nearest(_FULL_NAMES.get(text, text), [str(choice) for choice in (*choices, *items)])
        return f"{shown(text)} is not accepted", guess if "?" in guess else _wanted(alternatives)
    pattern = next((form.pattern for form in alternatives if form.pattern), "")
    if pattern:
        return f"{shown(text)} does not have the right form", PATTERN_WORDS[pattern]
    if types == {"string"}:
        return "is empty", "write a text"
    if types == {"array"}:
        hint = f"write a list: [{text}]" if _is_list_of_text(alternatives) else _LIST
        return f"{shown(text)} is text", hint
    return f"{shown(text)} is text", _wanted(alternatives)


def _wrong_number(number: int | float | bool, alternatives: Sequence[Accepted]) -> tuple[str, str]:
    number_choices = any(isinstance(choice, int) for choice in _choices(alternatives))
    numeric = [form for form in alternatives if form.type in ("integer", "number") and not form.choices]
    if isinstance(number, bool):
        return f"{shown(number)} is a boolean", _wanted(alternatives)
    if number_choices and not numeric:
        return f"{shown(number)} is not accepted", _wanted(alternatives)
    if not numeric:
        texts = any(form.type == "string" and not form.choices for form in alternatives)
        return f"{shown(number)} is a number", f'write "{number}"' if texts else _wanted(alternatives)
    if isinstance(number, float) and all(form.type == "integer" for form in numeric):
        whole = f"write {int(number)}" if number.is_integer() else _wanted(alternatives)
        return f"{shown(number)} is not a whole number", whole
    return f"{shown(number)} is out of range", _wanted(alternatives)


def _as_number(text: str, types: set[str]) -> str:
    """The number that a text was meant to be, as YAML writes it; empty if it is none."""
    if not types & {"integer", "number"}:
        return ""
    bare = text.strip().replace("_", "")
    percent = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", bare)
    if percent and "number" in types:
        return f"{float(percent[1]) / 100:g}"
    try:
        value = parse_plain_scalar(bare)
    except ValueError:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    # YAML 1.1 readers, most editors among them, take 2e-4 for text.
    return re.sub(r"^([-+]?[0-9]+)(?=[eE])", r"\1.0", bare)


def _wanted(alternatives: Sequence[Accepted]) -> str:
    choices = [str(choice) for choice in _choices(alternatives)]
    wanted = [_wanted_form(form) for form in alternatives if not form.choices]
    if choices:
        wanted.insert(0, f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0])
    return f"write {' or '.join(wanted)}" if wanted else "delete it"


def _wanted_form(form: Accepted) -> str:
    if form.type == "object":
        return f"a section with the keys {', '.join(form.properties)}" if form.properties else "names and texts"
    if form.type == "array":
        items = _item_choices(form)
        return f"a list of {', '.join(str(item) for item in items)}" if items else "a list with at least one item"
    if form.type in ("integer", "number"):
        return f"a {'whole number' if form.type == 'integer' else 'number'}{_range(form)}"
    if form.type == "boolean":
        return "true or false"
    return PATTERN_WORDS.get(form.pattern, "a text")


def _range(form: Accepted) -> str:
    bounds = [
        f"{words} {int(bound) if bound.is_integer() else bound}"
        for words, bound in (
            ("at least", form.at_least),
            ("above", form.above),
            ("at most", form.at_most),
            ("below", form.below),
        )
        if bound is not None
    ]
    words = " and ".join(bounds)
    return f" of {words}" if words.startswith("at ") else f" {words}".rstrip()


def _choices(alternatives: Sequence[Accepted]) -> list[str | int]:
    return [choice for form in alternatives for choice in form.choices]


def _item_choices(form: Accepted) -> tuple[str | int, ...]:
    return form.items.choices if form.items else ()


def _is_list_of_text(alternatives: Sequence[Accepted]) -> bool:
    return any(form.items is not None and form.items.type == "string" for form in alternatives)
