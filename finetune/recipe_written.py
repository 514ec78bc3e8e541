"""A recipe spelled out as YAML: every default that has an effect, and so that it is accepted when it is read again."""

from __future__ import annotations

import json

import yaml
from pydantic import JsonValue

from finetune.recipe import Recipe
from finetune.recipe_document import KeyPath
from finetune.recipe_rules import check_rules


def spell_out(recipe: Recipe) -> str:
    """Write a recipe with its defaults; a key that this recipe gives nothing to do is left to its default.

    `training.keep` without validation rows is such a key: stated, it is refused, as whoever stated it would be misled.
    """
    document = recipe.model_dump(mode="json", exclude_none=True)
    for finding in check_rules(Recipe.model_validate_json(json.dumps(document))):
        if finding.is_idle:
            _remove(document, finding.path)
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _remove(document: JsonValue, path: KeyPath) -> None:
    for part in path[:-1]:
        document = document[part]  # type: ignore[index]
    assert isinstance(document, dict), "idle keys stand in sections"
    del document[str(path[-1])]
