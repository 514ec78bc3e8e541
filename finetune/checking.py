"""`finetune check`: recipes are judged without running anything; `--here` also looks at this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.markup import escape

from evaluation.screen import PrintableConsole
from evaluation.task_file import list_bundled_tasks
from finetune.errors import Problem, RecipeError, UserError
from finetune.pypi import PYPI_PREFIX
from finetune.recipe import Recipe
from finetune.recipe_data import HeldOutSource, Source
from finetune.recipe_file import LoadedRecipe, load_recipe
from finetune.row_templates import check_columns, load_row_template
from finetune.rows import HUB_PREFIX
from finetune.run_directory import HELD_OUT_TASK

GIGABYTE = 1024**3
LEAST_MEMORY_BYTES = 4 * GIGABYTE
"""What the quick start's model needs; larger ones need about what their weights take, four times over."""


def check_recipes(recipes: Sequence[str], settings: Sequence[str], *, here: bool) -> int:
    """Check recipes, print every problem, and return the exit code: 0, or 2 if any recipe has a problem."""
    console = PrintableConsole(soft_wrap=True, highlight=False)
    status = 0
    broken = _package_problems() if here else []
    for name in recipes:
        try:
            loaded = load_recipe(name, settings)
            problems = [*_machine_problems(loaded), *broken] if here else []
            if problems:
                raise RecipeError(problems)
            console.print(f"[green]ok[/] {escape(str(loaded.file))}")
        except UserError as error:
            console.print(escape(str(error)))
            status = RecipeError.exit_code
    return status


def _package_problems() -> list[Problem]:
    """Check that the installed libraries are what this program takes them for."""
    from finetune.upstream_contracts import check_contracts

    try:
        check_contracts()
    except UserError as error:
        return [Problem(error.where, error.what, error.hint)]
    return []


def _machine_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Check files, templates, memory and devices of this machine."""
    from finetune.launch import count_devices

    recipe, problems = loaded.recipe, []
    for key, name in _local_names(recipe):
        if not Path(name).exists():
            problems.append(
                Problem(f"{loaded.file}: {key}", f"there is no file {name!r} here", f"looked in {Path.cwd()}")
            )
    for key, source in _sources(recipe):
        try:
            check_columns(load_row_template(source.rows), source.columns)
        except UserError as error:
            problems.append(Problem(f"{loaded.file}: {key}.rows", error.what, error.hint))
    memory = psutil.virtual_memory().total
    if memory < LEAST_MEMORY_BYTES:
        problems.append(
            Problem(str(loaded.file), f"{memory / GIGABYTE:.1f} GiB of memory", "at least 4 GiB are needed")
        )
    try:
        count_devices(recipe.training.devices)
    except UserError as error:
        problems.append(Problem(f"{loaded.file}: {error.where}", error.what, error.hint))
    return problems


def _sources(recipe: Recipe) -> list[tuple[str, Source]]:
    named: list[tuple[str, Source]] = [(f"data.train.{i}", source) for i, source in enumerate(recipe.data.train)]
    return (
        [*named, ("data.held_out", recipe.data.held_out)] if isinstance(recipe.data.held_out, HeldOutSource) else named
    )


def _local_names(recipe: Recipe) -> list[tuple[str, str]]:
    """List the keys whose values are files of this machine."""
    files = [(f"{key}.source", source.source) for key, source in _sources(recipe)]
    model = recipe.base.model
    if model.startswith(("/", ".")) or model.endswith(".gguf"):
        files.append(("base.model", model))
    bundled = {HELD_OUT_TASK, *list_bundled_tasks()}
    files += [("evaluation.tasks", task) for task in recipe.evaluation.tasks if task not in bundled]
    return [(key, name) for key, name in files if not name.startswith((PYPI_PREFIX, HUB_PREFIX))]
