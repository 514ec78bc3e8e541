"""Whether what publish.json claims is what the records beside it say: its figures, its base, its settings.

Every other file is told by its hash in publish.json; of publish.json itself nothing but these records speaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from evaluation.model import Quantization
from finetune.errors import DataError
from finetune.publish_manifest import MANIFEST_FILE, Manifest
from finetune.publish_records import RECIPE_FILE, RESULTS_FILE, Results, scores_of
from finetune.recipe import Recipe
from finetune.recipe_file import load_recipe


def check_claims(folder: Path, manifest: Manifest) -> None:
    """Check that publish.json claims what the records beside it hold; a folder without records is left alone.

    Raises:
        DataError: names the claim that is another.
    """
    for name, disagreements in ((RESULTS_FILE, _with_results), (RECIPE_FILE, _with_recipe)):
        if not (folder / name).is_file():
            continue
        for what in disagreements(folder / name, manifest):
            raise DataError(f"{what} in {MANIFEST_FILE} is not what {name} says", where=str(folder))


def _with_results(file: Path, manifest: Manifest) -> Iterator[str]:
    try:
        results = Results.model_validate_json(file.read_bytes())
    except ValidationError as error:
        what = f"{file.name} was written by another version of this program, or is damaged"
        raise DataError(what, where=str(file)) from error
    claimed = {(one.task, one.contender, one.metric): one for one in manifest.scores}
    found = {(one.task, one.contender, one.metric): one for one in scores_of(results.tasks)}
    for key in sorted({*claimed, *found}):
        if claimed.get(key) != found.get(key):
            yield f"{key[2]} of {key[1]} on {key[0]}"
    if manifest.seed != results.seed:
        yield "the seed"
    if manifest.versions != results.versions:
        yield "a version"


def _with_recipe(file: Path, manifest: Manifest) -> Iterator[str]:
    recipe: Recipe = load_recipe(str(file)).recipe
    quantization = recipe.quantization
    stored = str(Quantization(quantization.kind, quantization.double_quant)) if quantization else None
    if (manifest.base.model, manifest.base.revision) != (recipe.base.model, recipe.base.revision):
        yield "the base"
    if manifest.seed != recipe.seed:
        yield "the seed"
    if manifest.dtype != recipe.base.dtype:
        yield "dtype"
    if manifest.quantization != stored:
        yield "quantization"
