"""The command line of `finetune plan`: what a run takes, before it is run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from finetune.errors import MachineError, Problem, RecipeError

RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe. Repeatable.")
]
Device = Annotated[
    str | None,
    typer.Option(help="rtx4090, a10g, l40s, a100-40, a100-80, h100, h200 or cpu; this machine's if not given."),
]
MemoryText = Annotated[str | None, typer.Option("--memory", metavar="24GB", help="Memory of a GPU that has no name.")]
ProbeFlag = Annotated[bool, typer.Option("--probe", help="Train 20 steps on this machine to measure the rate.")]
RateValue = Annotated[
    float | None, typer.Option("--rate", min=1e-9, metavar="TOKENS", help="Tokens a second of one device, if known.")
]
Price = Annotated[float | None, typer.Option(min=0.0, metavar="PER_HOUR", help="Price of one device for an hour.")]
Devices = Annotated[int | None, typer.Option(min=1, help="GPUs (processes on a CPU); overrides the recipe.")]
Out = Annotated[Path | None, typer.Option(help="Run whose prepared rows are counted; runs/<name> if not given.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases and data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")]


def plan(  # noqa: PLR0913  # each option of the command is a parameter
    recipe: RecipeName,
    settings: Settings = None,
    device: Device = None,
    memory: MemoryText = None,
    probe: ProbeFlag = False,
    rate: RateValue = None,
    price: Price = None,
    devices: Devices = None,
    out: Out = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Say what training takes before it is run: memory by term, steps, time, cost, and what would make it fit.

    Reads no weights and fetches nothing, except with --probe. Exits 0, or 6 where it does not fit.
    """
    from evaluation.screen import PrintableConsole
    from finetune.cache import default_cache
    from finetune.plan_picture import as_json as to_json
    from finetune.plan_picture import picture
    from finetune.planning import Question
    from finetune.planning import plan as plan_run
    from finetune.recipe_file import load_recipe

    stated = [*(settings or []), *([f"training.devices={devices}"] if devices is not None else [])]
    loaded = load_recipe(recipe, stated)
    folder = cache or default_cache()
    probed = None
    if probe:
        from finetune.console import Reporter
        from finetune.plan_probe import probe as probe_here

        _refuse_elsewhere(device, memory, rate)
        probed = probe_here(loaded, folder, Reporter())
    question = Question(device, memory, rate, price)
    found = plan_run(loaded.recipe, question, out or Path("runs") / loaded.recipe.name, folder, probed)
    if as_json:
        typer.echo(to_json(found))
    else:
        PrintableConsole(highlight=False).print(picture(found, shlex.join(["finetune", "run", recipe]), stated))
    if not found.fits:
        raise typer.Exit(MachineError.exit_code)


def _refuse_elsewhere(device: str | None, memory: str | None, rate: float | None) -> None:
    """A probe measures this machine, and nothing is known of another by it.

    Raises:
        RecipeError: another device is planned for, or the rate is stated.
    """
    from finetune.machine import has_gpu

    if memory is not None or (device is not None and (device != "cpu" or has_gpu())):
        hint = "leave out --device and --memory, or state the other device's --rate"
        raise RecipeError([Problem("--probe", "it measures this machine, and another is planned for", hint)])
    if rate is not None:
        raise RecipeError([Problem("--probe", "the rate is stated already", "leave out --rate or --probe")])
