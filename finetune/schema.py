"""The JSON schema of the recipe, for editors and other tools; docs/recipe.schema.json holds a copy."""

from __future__ import annotations

import json

from finetune.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> str:
    """The schema as indented JSON; descriptions are the texts under the fields of the types."""
    schema = {"$schema": DIALECT, **Recipe.model_json_schema(), "title": "Recipe of finetune"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
