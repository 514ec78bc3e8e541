"""`finetune show`: the recipe with every default filled in, and what this machine chooses for it."""

from __future__ import annotations

import yaml
from rich.syntax import Syntax

from evaluation.screen import PrintableConsole
from finetune.capabilities import choose, this_machine
from finetune.machine import computes_bfloat16, settle_dtypes
from finetune.recipe_file import LoadedRecipe


def show_recipe(loaded: LoadedRecipe) -> None:
    """Print a resolved recipe as YAML and the choices of this machine as comments below it."""
    recipe = settle_dtypes(loaded.recipe, bfloat16=computes_bfloat16())
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    machine = this_machine()
    choices = choose(machine, recipe).named()
    where = "GPU" if machine.cuda else "CPU"
    named = "".join(f"#   {name}: {value}\n" for name, value in choices.items())
    console = PrintableConsole()
    note = f"# On this machine ({where}):\n{named}"
    if console.is_terminal:
        console.print(Syntax(text + note, "yaml", background_color="default"))
    else:
        console.out(text + note, end="", highlight=False)
