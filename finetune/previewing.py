"""`finetune preview`: training examples as the model will see them, with the trained tokens in colour."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from evaluation.rendering import Example, Renderer
from evaluation.screen import PrintableConsole
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.console import Reporter
from finetune.prepare_examples import load_renderer, render_rows, train_settings
from finetune.prepare_parts import assign
from finetune.prepare_sources import collect
from finetune.recipe_file import LoadedRecipe
from finetune.spans import spans_of

TRAINED = "bold green"
"""Style of a trained token; where there is no colour it stands between ⟦ and ⟧ as well."""


def preview_recipe(loaded: LoadedRecipe, rows: int, cache: Path | None) -> None:
    """Print the first examples of a recipe's training rows, and how many rows there are."""
    recipe, reporter, console = loaded.recipe, Reporter(), PrintableConsole()
    folder = cache or default_cache()
    renderer = load_renderer(resolve_base(recipe.base, folder, reporter.say).folder)
    table = collect(recipe, folder, reporter)
    parts = assign(recipe.data, table, recipe.seed)
    shown = list(table.rows(parts.train[:rows].tolist()))
    for outcome in render_rows(renderer, train_settings(recipe), shown):
        name = f"{shown[outcome.row].id} {outcome.copy}".strip()
        if outcome.example is None:
            console.rule(f"{name}  set aside: {outcome.reason}")
            console.print(outcome.detail, markup=False)
            continue
        example = outcome.example
        console.rule(f"{name}  {len(example.input_ids)} tokens, {example.trained_tokens} trained")
        console.print(_marked(example, renderer), soft_wrap=True)
    console.rule()
    aside = sum(len(read.set_aside) for read in table.sources)
    console.print(
        f"{len(parts.train)} training rows, {len(parts.validation)} validation, {len(parts.held_out)} held out, {aside}"
        " set aside while they were read; what stands between ⟦ and ⟧ is trained on."
    )


def _marked(example: Example, renderer: Renderer) -> Text:
    text = Text()
    for span in spans_of(example, renderer):
        text.append(f"⟦{span.text}⟧" if span.trained else span.text, style=TRAINED if span.trained else "dim")
    return text
