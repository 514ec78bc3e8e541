"""The JSON schema of the recipe."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.recipe import Recipe
from finetune.recipe_accepted import patterns
from finetune.recipe_file import shipped_recipes
from finetune.recipe_values import PATTERN_WORDS
from finetune.schema import DIALECT, recipe_schema

ROOT = Path(__file__).parents[2]
LINE = "# yaml-language-server: $schema=../docs/recipe.schema.json"


def test_copy_in_docs_is_up_to_date() -> None:
    assert (ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8") == recipe_schema()


def test_every_key_is_described_and_every_section_closed() -> None:
    schema = json.loads(recipe_schema())
    assert schema["$schema"] == DIALECT
    sections = [schema, *schema["$defs"].values()]
    assert set(schema["properties"]) == set(Recipe.model_fields)
    for section in sections:
        assert section["description"]
        assert section["additionalProperties"] is False
        assert all("description" in field or "$ref" in field for field in section["properties"].values())


def test_every_pattern_has_words_for_messages() -> None:
    assert patterns() == set(PATTERN_WORDS)


def test_every_shipped_recipe_names_the_schema() -> None:
    for name in shipped_recipes():
        lines = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert lines[0] == LINE
