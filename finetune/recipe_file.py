"""Loads a recipe: one YAML file and its `--set` become one checked, frozen object without importing torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import JsonValue, ValidationError

from finetune.errors import Problem, RecipeError, nearest
from finetune.recipe import Recipe
from finetune.recipe_document import Finding, Node, plain, problems_of
from finetune.recipe_overrides import apply_overrides, stale_hashes
from finetune.recipe_problems import findings_of
from finetune.recipe_rules import check_rules
from finetune.recipe_yaml import MAX_BYTES, parse_document
from finetune.secret_rules import secrets_in_overrides, secrets_in_text, without_secrets

_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe with where it came from."""

    recipe: Recipe
    named: str
    """What the command line said: a path or a shipped recipe's bare name."""
    file: Path
    """The file as it was named, or the shipped file of a bare name."""
    text: str
    """The file as written, comments and all, without the overrides."""
    overrides: tuple[str, ...]
    """What `--set` was given, in order."""
    document: dict[str, JsonValue]
    """The bare values that were validated: the file with the overrides, without the defaults."""


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe file, or a shipped recipe by its bare name such as `icd10-quickstart`.

    Raises:
        RecipeError: every problem of the file and of the overrides, in the order of the file.
    """
    file = find_recipe(path_or_name)
    text = _read_text(file)
    root, findings = parse_document(text, str(file))
    root, misdirected = apply_overrides(root, overrides)
    findings += [*misdirected, *stale_hashes(root), *secrets_in_text(text), *secrets_in_overrides(overrides)]
    document = plain(root)
    assert isinstance(document, dict)
    recipe, invalid = _validate(document, root, findings)
    if recipe is None:
        raise RecipeError([_redacted(problem) for problem in problems_of(invalid, root, str(file))])
    return LoadedRecipe(recipe, path_or_name, file, text, tuple(overrides), document)


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the toolkit, in alphabetical order."""
    folder = resources.files("finetune.recipes")
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def find_recipe(path_or_name: str) -> Path:
    """The file of a recipe: a path (with a folder or an ending), or else the shipped recipe of that name.

    Raises:
        RecipeError: there is none; the message names the nearest.
    """
    if "/" in path_or_name or "\\" in path_or_name or path_or_name.endswith(_ENDINGS):
        return Path(path_or_name)
    names = shipped_recipes()
    if path_or_name in names:
        return Path(str(resources.files("finetune.recipes") / f"{path_or_name}.yaml"))
    guess = nearest(path_or_name, names)
    everything = f"shipped: {', '.join(names)}; a file is named with its ending"
    hint = f"{guess} {everything}" if guess.startswith("did you mean") else everything
    raise RecipeError([Problem(path_or_name or "''", "no shipped recipe has this name", hint)])


def _read_text(file: Path) -> str:
    try:
        if not file.is_file():
            what = "is not a file" if file.exists() else "no such file"
            beside = sorted(path.name for path in file.parent.glob("*.y*ml"))
            raise RecipeError([Problem(str(file), what, nearest(file.name, beside) or "see `finetune list`")])
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError([Problem(f"{file}:{line}", "is not UTF-8 text", "save the file as UTF-8")]) from None
    except OSError as error:
        raise RecipeError([Problem(str(file), f"cannot be read: {error.strerror}")]) from None


def _validate(
    document: dict[str, JsonValue], root: Node, findings: list[Finding]
) -> tuple[Recipe | None, list[Finding]]:
    try:
        # Through JSON, where a list is what a tuple is written as, and nothing else is converted.
        recipe = Recipe.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        known = {finding.path for finding in findings if finding.path}
        return None, findings + [finding for finding in findings_of(error, root) if finding.path not in known]
    findings = findings + check_rules(recipe)
    return (None, findings) if findings else (recipe, [])


def _redacted(problem: Problem) -> Problem:
    return Problem(without_secrets(problem.where), without_secrets(problem.what), without_secrets(problem.hint))
