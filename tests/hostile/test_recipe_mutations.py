"""Every key of every shipped recipe, spoilt in nine ways: refused with its line and a hint, or rightly accepted."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from figures import Figures

from finetune.errors import RecipeError
from finetune.recipe import Recipe
from finetune.recipe_file import find_recipe, load_recipe, shipped_recipes

Path_ = tuple[str | int, ...]
WAYS = (
    "delete",
    "add a letter",
    "swap two letters",
    "capital",
    "nest deeper",
    "move out",
    "type",
    "range",
    "duplicate",
)
FREE = {"name", "description", "source", "rows", "model", "by", "revision", "split"}
"""Keys whose value is any text, so that none is out of range by its form alone."""


@dataclass(frozen=True)
class Spoilt:
    """A recipe with one thing wrong."""

    recipe: str
    path: Path_
    way: str
    text: str
    expected: frozenset[str]
    """One of these words stands in the problem: the key as written or as meant."""


def keys_of(document: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every key; those of `columns` are names of the rows' columns."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield (*path, key)
            if key != "columns":
                yield from keys_of(value, (*path, key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from keys_of(value, (*path, number))


def at(document: Any, path: Path_) -> Any:
    """Return what lies at a path."""
    for part in path:
        document = document[part]
    return document


def renamed(section: dict[str, Any], key: str, new: str) -> None:
    """Give a key another name, in its place."""
    entries = [(new if name == key else name, value) for name, value in section.items()]
    section.clear()
    section.update(entries)


def swapped(key: str) -> str | None:
    """Swap the first two neighbours that differ."""
    for i in range(len(key) - 1):
        if key[i] != key[i + 1]:
            return key[:i] + key[i + 1] + key[i] + key[i + 2 :]
    return None


def other_type(value: Any) -> Any:
    """Return a value of a type that no key takes in the place of this one."""
    if isinstance(value, bool):
        return "perhaps"
    if isinstance(value, int | float):
        return "many"
    return 7 if isinstance(value, dict | list) else {"a": 1}


def out_of_range(key: str, value: Any) -> Any:
    """Return a value of the right type that is none of those accepted; None where there is none."""
    if isinstance(value, (bool, dict | list)):
        return None
    if isinstance(value, int | float):
        return -1
    return None if key in FREE else "nonsense"


def spoil(recipe: str, original: Any, path: Path_, way: str) -> Spoilt | None:  # noqa: C901  # a case for each way
    """Spoil one key in one way; None where that way has nothing to do with it."""
    document, key = copy.deepcopy(original), str(path[-1])
    section, value = at(document, path[:-1]), at(document, path)
    expected = {key}
    match way:
        case "delete":
            del section[key]
        case "add a letter":
            renamed(section, key, f"{key}x")
        case "swap two letters":
            if (new := swapped(key)) is None or new in section:
                return None
            renamed(section, key, new)
            expected.add(new)
        case "capital":
            renamed(section, key, key.capitalize())
            expected.add(key.capitalize())
        case "nest deeper":
            section[key] = {key: value}
        case "move out":
            if len(path) < 2 or key in original:
                return None
            del section[key]
            document[key] = value
        case "type":
            section[key] = other_type(value)
        case "range":
            if (new_value := out_of_range(key, value)) is None:
                return None
            section[key] = new_value
        case "duplicate":
            pass
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    if way == "duplicate":
        text = doubled(text, path)
    return Spoilt(recipe, path, way, text, frozenset(expected))


def doubled(text: str, path: Path_) -> str:
    """Write a key a second time, with null, above itself."""
    line, column = place_of(text, path)
    lines = text.splitlines(keepends=True)
    indent, key = " " * column, str(path[-1])
    if lines[line].lstrip().startswith("- ") and lines[line].index("- ") < column:
        begin = lines[line][:column]
        return "".join([*lines[:line], f"{begin}{key}: null\n", indent + lines[line][column:], *lines[line + 1 :]])
    return "".join([*lines[:line], f"{indent}{key}: null\n", *lines[line:]])


def place_of(text: str, path: Path_) -> tuple[int, int]:
    """Return line and column, from 0, of a key."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    mark = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            mark, node = next((key.start_mark, value) for key, value in node.value if key.value == part)
        elif isinstance(node, yaml.SequenceNode):
            node = node.value[int(part)]
    assert mark is not None
    return mark.line, mark.column


def lines_of(spoilt: Spoilt) -> set[int]:
    """Return the lines, from 1, at which a problem may be shown: those of the key and its value.

    What a missing key is needed for may stand anywhere.
    """
    found: set[int] = set()
    if spoilt.way == "delete":
        return set(range(1, spoilt.text.count("\n") + 2))
    root = yaml.compose(spoilt.text, Loader=yaml.SafeLoader)
    names = spoilt.expected | {f"{spoilt.path[-1]}x"}
    pending: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(root, ())]
    while pending:
        node, path = pending.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, key.value)
                if key.value in names:
                    found |= set(range(key.start_mark.line + 1, value.end_mark.line + 2))
                pending.append((value, here))
        elif isinstance(node, yaml.SequenceNode):
            pending += [(item, (*path, str(i))) for i, item in enumerate(node.value)]
    return found


def defaulted(path: Path_, recipe: Recipe, original: Recipe) -> bool:
    """Say whether deleting a key left everything but what it says as it was."""
    gone, before = recipe.model_dump(), original.model_dump()
    try:
        at(gone, path[:-1]).pop(path[-1], None)
        at(before, path[:-1]).pop(path[-1], None)
    except (KeyError, TypeError):  # the whole section is one that was not given
        return True
    return gone == before


def what_went_wrong(spoilt: Spoilt, folder: Path, original: Recipe) -> str:
    """Load a spoilt recipe; "" where it is refused at the key with a hint, or accepted as if the key had not been."""
    file = folder / "spoilt.yaml"
    file.write_text(spoilt.text, encoding="utf-8")
    try:
        loaded = load_recipe(str(file))
    except RecipeError as error:
        return _badly_told(spoilt, error)
    if spoilt.way == "delete" and defaulted(spoilt.path, loaded.recipe, original):
        return ""
    return "it is accepted"


def _badly_told(spoilt: Spoilt, error: RecipeError) -> str:
    allowed = lines_of(spoilt)
    for problem in error.problems:
        line = re.search(r"spoilt\.yaml:(\d+)", problem.where)
        told = f"{problem.what} {problem.hint}"
        if line and int(line[1]) in allowed and problem.hint and any(word in told for word in spoilt.expected):
            return ""
    return f"not told at {sorted(allowed)[:5]}…: {error}"


def every_spoilt(recipe: str) -> Iterator[Spoilt]:
    """Yield a recipe spoilt at every key in every way."""
    original = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))
    for path in keys_of(original):
        for way in WAYS:
            if spoilt := spoil(recipe, original, path, way):
                yield spoilt


def failures(recipe: str, folder: Path) -> tuple[int, list[str]]:
    """Count the spoilt forms of a recipe, and say of which too little is said."""
    original = load_recipe(recipe).recipe
    cases = list(every_spoilt(recipe))
    told = [(one, what_went_wrong(one, folder, original)) for one in cases]
    return len(cases), [f"{recipe}, {'.'.join(map(str, one.path))}, {one.way}: {found}" for one, found in told if found]


def test_every_key_of_the_quick_start(tmp_path: Path) -> None:
    count, wrong = failures("icd10-quickstart", tmp_path)
    assert count > 300
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.slow
def test_every_key_of_every_recipe(tmp_path: Path, figures: Figures) -> None:
    found = [failures(recipe, tmp_path) for recipe in shipped_recipes()]
    count, wrong = sum(count for count, _ in found), [line for _, lines in found for line in lines]
    claim = "a key deleted, misspelt, misplaced, doubled, of another type or out of range is refused with line and hint"
    note = f"{len(found)} recipes shipped; a key that may be left out has its default"
    figures.report("Recipes", claim, count, "keys × ways", len(wrong), note)
    assert len(found) == 11
    assert not wrong, "\n".join(wrong[:20])
