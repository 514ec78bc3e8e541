"""`finetune preview`: training examples as the model will see them, with the trained tokens in colour."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from evaluation.model import load_tokenizer
from evaluation.rendering import Renderer
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.console import Reporter
from finetune.prepare import all_set_aside, prepare_rows, spans_of
from finetune.recipe_file import LoadedRecipe

TRAINED = "bold green"
"""Style of a trained token; where there is no colour it stands between ⟦ and ⟧ as well."""


def preview_recipe(loaded: LoadedRecipe, rows: int, cache: Path | None) -> None:
    """Print the first examples of a recipe's training rows and what became of the others."""
    reporter, console = Reporter(), Console()
    folder = cache or default_cache()
    base = resolve_base(loaded.recipe.base, folder, reporter.say)
    renderer = Renderer(load_tokenizer(base.folder))
    prepared = prepare_rows(loaded.recipe, renderer, folder, reporter)
    shown = list(zip(prepared.train.rows, prepared.train.examples, strict=True))[:rows]
    for row, example in shown:
        console.rule(f"{row.id}  {len(example.input_ids)} tokens, {example.trained_tokens} trained")
        text = Text()
        for span in spans_of(example, renderer):
            text.append(f"⟦{span.text}⟧" if span.trained else span.text, style=TRAINED if span.trained else "dim")
        console.print(text, soft_wrap=True)
    console.rule()
    aside = len(all_set_aside(prepared))
    console.print(
        f"{len(prepared.train.rows)} training examples, {len(prepared.held_out.rows)} held-out, {aside} rows set aside;"
        " what stands between ⟦ and ⟧ is trained on."
    )
