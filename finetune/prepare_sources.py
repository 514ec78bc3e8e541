"""The sources of a recipe, read to their ends: those that are trained on, and the held-out one if it is apart."""

from __future__ import annotations

from pathlib import Path

from finetune.console import Reporter
from finetune.errors import DataError
from finetune.prepare_parts import RowTable
from finetune.prepare_rows import collect_source
from finetune.privacy_names import check_name_finder
from finetune.recipe import Recipe
from finetune.recipe_data import Data, HeldOutFraction


def collect(recipe: Recipe, cache: Path, reporter: Reporter) -> RowTable:
    """Read every source, the held-out one last.

    Raises:
        DataError: a source cannot be read, or holds nothing that can be used.
    """
    if recipe.privacy is not None:
        check_name_finder(recipe.privacy.detect)
    by, own = group_columns(recipe.data), recipe.data.held_out_source
    read = [collect_source(source, by, recipe.privacy, cache, reporter) for source in recipe.data.train]
    if own is not None:
        read.append(collect_source(own, None, recipe.privacy, cache, reporter))
    return RowTable(read)


def group_columns(data: Data) -> str | None:
    """Return the column that splits are made by.

    Raises:
        DataError: validation and held-out rows are split by different columns, so that a group could straddle.
    """
    by_validation = data.validation.by if data.validation else None
    by_held_out = data.held_out.by if isinstance(data.held_out, HeldOutFraction) else by_validation
    if data.validation and isinstance(data.held_out, HeldOutFraction) and by_validation != by_held_out:
        raise DataError(
            f"validation is split by {by_validation!r} and held-out rows by {by_held_out!r}",
            where="data.validation.by",
            hint="name the same column in both, so that no group stands on two sides",
        )
    return by_held_out
