"""The recipe beside a published model, with this machine's files in the places of those that were not published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from evaluation.files import sha256_of_file
from evaluation.task_file import list_bundled_tasks
from finetune.errors import DataError, nearest
from finetune.publish_manifest import ADAPTER_FOLDER, Manifest, merged_folder
from finetune.published import TEMPLATE_FILE, template_of
from finetune.push_targets import is_safe_name
from finetune.pypi import PYPI_PREFIX
from finetune.recipe import Base
from finetune.recipe_data import HeldOutSource, Source
from finetune.recipe_file import LoadedRecipe, load_recipe
from finetune.recipe_written import spell_out
from finetune.row_template_files import is_template_file
from finetune.rows import HUB_PREFIX
from finetune.run_directory import HELD_OUT_TASK

RECIPE_FILE = "recipe.yaml"
_Source = TypeVar("_Source", bound=Source)


def load_published_recipe(folder: Path, manifest: Manifest, base: Path | None, data: Sequence[str]) -> LoadedRecipe:
    """Load recipe.yaml of a published folder so that it can be prepared here; writes it anew with the files of `data`.

    Raises:
        RecipeError: this version of the toolkit does not accept it.
        DataError: there is none, or a file that it needs was not given or is another.
    """
    file = folder / RECIPE_FILE
    if not file.is_file():
        what = f"no {RECIPE_FILE} in it, so nothing says which rows its figures are about"
        raise DataError(what, where=manifest.name, hint="ask who published it; `finetune pull` checks the rest")
    loaded = load_recipe(str(file))
    recipe, given = loaded.recipe, _parse_pairs(data)
    unknown = sorted(given.keys() - {source.source for source in recipe.data.sources})
    if unknown:
        names = [source.source for source in recipe.data.sources]
        raise DataError("its recipe names no such source", where=unknown[0], hint=nearest(unknown[0], names))
    if base is None and not _is_published(recipe.base.model):
        what = f"the base {recipe.base.model} was not published and is not in the cache"
        raise DataError(what, where=manifest.name, hint="--base names its folder")
    held_out = recipe.data.held_out
    changed = recipe.model_copy(
        update={
            "base": _base_here(recipe.base, folder, manifest, base),
            "data": recipe.data.model_copy(
                update={
                    "train": tuple(_here(source, given, folder) for source in recipe.data.train),
                    "held_out": _here(held_out, given, folder) if isinstance(held_out, HeldOutSource) else held_out,
                }
            ),
            "evaluation": recipe.evaluation.model_copy(update={"tasks": _known_tasks(recipe.evaluation.tasks)}),
        }
    )
    written = folder.with_name(f"verify-{RECIPE_FILE}")
    written.write_text(spell_out(changed), encoding="utf-8")
    return load_recipe(str(written))


def _is_published(model: str) -> bool:
    return model.startswith(PYPI_PREFIX) or ("/" in model and not Path(model).exists())


def _base_here(stated: Base, folder: Path, manifest: Manifest, base: Path | None) -> Base:
    """Name the folder of the base, where there is one, and the published chat template, where it is not the base's."""
    if base is None:
        here, has_own = stated, stated.chat_template is None
    else:
        fields = {"model": str(base.resolve()), "revision": None, "sha256": None, "chat_template": None}
        here = stated.model_copy(update=fields)
        has_own = hashlib.sha256(template_of(base).encode()).hexdigest() == manifest.template_sha256
    file = folder / (ADAPTER_FOLDER if "adapter" in manifest.parts else merged_folder(manifest)) / TEMPLATE_FILE
    if has_own or not file.is_file():  # a GGUF file alone has no such file beside it
        return here if has_own else here.model_copy(update={"chat_template": stated.chat_template})
    return here.model_copy(update={"chat_template": str(file)})


def _parse_pairs(pairs: Sequence[str]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        source, equals, file = pair.partition("=")
        if not equals or not source or not file:
            raise DataError("not SOURCE=FILE", where=f"--data {pair}", hint="such as --data rows.csv=my/rows.csv")
        found[source] = Path(file)
    return found


def _here(source: _Source, given: Mapping[str, Path], folder: Path) -> _Source:
    """Put a file of this machine in the place of one that was not published, if it is the same.

    A row template that is a file lies in the published folder.
    """
    if is_template_file(source.rows):
        if not is_safe_name(source.rows) or not (folder / source.rows).is_file():
            raise DataError("the row template was not published", where=source.rows)
        source = source.model_copy(update={"rows": str(folder / source.rows)})
    if source.source in given:
        file = given[source.source]
        if not file.is_file():
            raise DataError("there is no such file", where=str(file))
        found = sha256_of_file(file)
        if source.sha256 is None:
            what = "its recipe has no sha256 of this source, so no file can be known to be it"
            raise DataError(what, where=source.source)
        if found != source.sha256:
            raise DataError(f"its sha256 is {found}; {source.source} had {source.sha256}", where=str(file))
        return source.model_copy(update={"source": str(file.resolve())})
    if source.source.startswith((HUB_PREFIX, PYPI_PREFIX)):
        return source
    what = f"its rows were not published (sha256 {source.sha256 or 'not stated'})"
    raise DataError(what, where=source.source, hint=f"give the file: --data {source.source}=FILE")


def _known_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the held-out rows and bundled tasks; other task files were not published."""
    return tuple(task for task in tasks if task == HELD_OUT_TASK or task in list_bundled_tasks()) or (HELD_OUT_TASK,)
