"""`finetune check`: recipes are judged without running anything; `--here` also looks at this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape

from evaluation.task_file import list_bundled_tasks
from finetune.errors import Problem, RecipeError, UserError
from finetune.pypi import PYPI_PREFIX
from finetune.recipe import HeldOutSource, Recipe
from finetune.recipe_file import LoadedRecipe, load_recipe
from finetune.row_templates import check_columns, load_row_template
from finetune.rows import HUB_PREFIX
from finetune.run_directory import HELD_OUT_TASK

GIGABYTE = 1024**3
LEAST_MEMORY_BYTES = 4 * GIGABYTE
"""What the quick start's model needs; larger ones need about what their weights take, four times over."""


def check_recipes(recipes: Sequence[str], settings: Sequence[str], *, here: bool) -> int:
    """Check recipes, print every problem, and return the exit code: 0, or 2 if any recipe has a problem."""
    console = Console(soft_wrap=True, highlight=False)
    status = 0
    for name in recipes:
        try:
            loaded = load_recipe(name, settings)
            problems = _template_problems(loaded) + (_machine_problems(loaded.recipe) if here else [])
            if problems:
                raise RecipeError(problems)
            console.print(f"[green]ok[/] {escape(str(loaded.file))}")
        except UserError as error:
            console.print(escape(str(error)))
            status = RecipeError.exit_code
    return status


def _template_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Check that the row templates that the recipe names exist and know its columns."""
    data = loaded.recipe.data
    sources = [*enumerate(data.train)] + ([(-1, data.held_out)] if isinstance(data.held_out, HeldOutSource) else [])
    problems = []
    for number, source in sources:
        key = f"data.train.{number}" if number >= 0 else "data.held_out"
        try:
            check_columns(load_row_template(source.rows), source.columns)
        except UserError as error:
            problems.append(Problem(f"{loaded.file}: {key}", error.what, error.hint))
    return problems


def _machine_problems(recipe: Recipe) -> list[Problem]:
    """Check files, memory and devices of this machine."""
    from finetune.launch import count_devices

    problems = [
        Problem(key, f"there is no file {name!r} here", f"looked in {Path.cwd()}")
        for key, name in _local_names(recipe)
        if not Path(name).exists()
    ]
    memory = psutil.virtual_memory().total
    if memory < LEAST_MEMORY_BYTES:
        problems.append(Problem("machine", f"{memory / GIGABYTE:.1f} GiB of memory", "at least 4 GiB are needed"))
    try:
        count_devices(recipe.training.devices)
    except UserError as error:
        problems.append(Problem(error.where, error.what, error.hint))
    return problems


def _local_names(recipe: Recipe) -> list[tuple[str, str]]:
    named = [(f"data.train.{i}.source", source.source) for i, source in enumerate(recipe.data.train)]
    if isinstance(recipe.data.held_out, HeldOutSource):
        named.append(("data.held_out.source", recipe.data.held_out.source))
    files = [(key, name) for key, name in named if not name.startswith((PYPI_PREFIX, HUB_PREFIX))]
    if recipe.base.model.startswith(("/", ".")) or recipe.base.model.endswith(".gguf"):
        files += [("base.model", recipe.base.model)] if not recipe.base.model.startswith(PYPI_PREFIX) else []
    bundled = {HELD_OUT_TASK, *list_bundled_tasks()}
    return files + [("evaluation.tasks", task) for task in recipe.evaluation.tasks if task not in bundled]
