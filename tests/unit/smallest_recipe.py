"""The smallest recipe that is accepted, and what rules on its keys are asked: refuse this, let that pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe_file import load_recipe

SMALLEST = """\
version: 1
name: smallest
base: {model: org/model}
adapter: {kind: lora}
data:
  train:
    - {source: rows.jsonl, rows: alpaca}
  held_out: {fraction: 0.1}
"""


def write_smallest(folder: Path) -> Path:
    """Write it as smallest.yaml."""
    file = folder / "smallest.yaml"
    file.write_text(SMALLEST, encoding="utf-8")
    return file


def check_refused(recipe: str, overrides: Sequence[str], key: str, says: str) -> None:
    """Check that these overrides are one problem: at this key, in these words, with a way out."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{key}: ")
    assert says in str(problem)
    assert problem.hint
