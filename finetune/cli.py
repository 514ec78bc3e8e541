"""The command line of `finetune`: reads arguments, calls one function, turns a problem into a screen and a code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.markup import escape

from evaluation.offline import network_refused
from evaluation.quiet import quiet_libraries
from evaluation.screen import PrintableConsole
from finetune.adapter_cli import adapter
from finetune.errors import MachineError, UserError
from finetune.export_cli import export, export_adapter, launch_line
from finetune.plan_cli import plan
from finetune.publish_cli import publish
from finetune.push_cli import pull, push, verify
from finetune.repeat_cli import diff, rerun
from finetune.signals import NOTHING_BY_HALVES, Interrupted, Signals
from finetune.talk_cli import chat, serve

if TYPE_CHECKING:
    from finetune.recipe_file import LoadedRecipe
    from finetune.run_directory import Stage

TRACEBACK = "--traceback"
"""Accepted anywhere on the command line: show where an error came from."""
OFFLINE = "--offline"
"""Accepted anywhere on the command line: whoever asks the network is refused, and named."""
EXIT_BROKEN = 70
"""sysexits.h EX_SOFTWARE: a fault of the program, not of its user."""

app = typer.Typer(
    name="finetune",
    help="Fine-tune a LLaMA model from one recipe, and prove what the report claims.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 2 recipe, 3 data, 4 training stopped, 5 proof failed, 6 this machine cannot do it, "
    "7 a repeated run came out otherwise, 130 and 143 interrupted (Ctrl-C, SIGTERM).",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune-recipes {version('finetune-recipes')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    # Both are taken off the command line by `main`, wherever they stand; here they are for `--help`.
    offline: Annotated[
        bool, typer.Option(OFFLINE, help="With any command: refuse all network, and name whoever asks.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="With any command: show where an error came from.")
    ] = False,
) -> None:
    """Fine-tune a LLaMA model from one recipe, and prove what the report claims."""


RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as training.learning_rate=1e-4. Repeatable."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; runs/<name of the recipe> if not given.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases and data.")]
Devices = Annotated[str | None, typer.Option(metavar="N|all", help="GPUs (processes on a CPU); overrides the recipe.")]


Restart = Annotated[bool, typer.Option("--restart", help="Train an interrupted training anew from its first step.")]


Masks = Annotated[
    Literal["sample", "full"] | None,
    typer.Option("--audit", help="Compute the masks of a sample or of all examples in a second way."),
]


class Listed(StrEnum):
    """What `finetune list` can list."""

    recipes = "recipes"
    templates = "templates"
    runs = "runs"


@app.command(epilog="Example: finetune run icd10-quickstart --set data.train.0.limit=200")
def run(  # noqa: PLR0913  # each option of the command is a parameter
    recipe: RecipeName,
    settings: Settings = None,
    out: Out = None,
    cache: Cache = None,
    devices: Devices = None,
    audit: Masks = None,
    restart: Restart = False,
) -> None:
    """Run every stage of a recipe: prepare, train, merge, evaluate, report. Finished stages are skipped.

    A training that was interrupted goes on from its last checkpoint.
    """
    if restart:
        _forget_training(recipe, settings, out)
    _run(_load(recipe, settings, devices, audit), out, cache, "report")


@app.command(epilog="Example: finetune prepare my-recipe.yaml")
def prepare(
    recipe: RecipeName, settings: Settings = None, out: Out = None, cache: Cache = None, audit: Masks = None
) -> None:
    """Read, split, render and audit the data, and stop before training."""
    _run(_load(recipe, settings, audit=audit), out, cache, "prepare")


@app.command(epilog="Example: finetune train llama3.1-8b-qlora-chat --devices all")
def train(
    recipe: RecipeName,
    settings: Settings = None,
    out: Out = None,
    cache: Cache = None,
    devices: Devices = None,
    restart: Restart = False,
) -> None:
    """Run the stages up to training; one that was interrupted goes on from its last checkpoint."""
    if restart:
        _forget_training(recipe, settings, out)
    _run(_load(recipe, settings, devices), out, cache, "train")


@app.command(epilog="Example: finetune merge icd10-quickstart --set merge.onto=full_precision")
def merge(recipe: RecipeName, settings: Settings = None, out: Out = None, cache: Cache = None) -> None:
    """Run the stages up to the proven merge."""
    _run(_load(recipe, settings), out, cache, "merge")


@app.command(epilog="Example: finetune evaluate icd10-quickstart")
def evaluate(recipe: RecipeName, settings: Settings = None, out: Out = None, cache: Cache = None) -> None:
    """Run the stages up to the scores on the held-out rows."""
    _run(_load(recipe, settings), out, cache, "evaluate")


@app.command(epilog="Example: finetune report icd10-quickstart")
def report(recipe: RecipeName, settings: Settings = None, out: Out = None, cache: Cache = None) -> None:
    """Write the report, running whatever stage is missing before it."""
    _run(_load(recipe, settings), out, cache, "report")


@app.command(epilog="Example: finetune check recipes/*.yaml")
def check(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files or names.", show_default=False)],
    settings: Settings = None,
    here: Annotated[bool, typer.Option("--here", help="Also check files, memory and device of this machine.")] = False,
) -> None:
    """Check recipes without running anything: every problem at once, with its line. Exits 0 or 2."""
    from finetune.checking import check_recipes

    raise typer.Exit(check_recipes(recipes, settings or [], here=here))


app.command("plan", epilog="Example: finetune plan llama3.1-8b-qlora-chat --device rtx4090")(plan)


@app.command(epilog="Example: finetune show icd10-quickstart --set seed=1")
def show(recipe: RecipeName, settings: Settings = None) -> None:
    """Print the recipe with every default filled in, and what this machine would choose for it."""
    from finetune.showing import show_recipe

    show_recipe(_load(recipe, settings))


@app.command(epilog="Example: finetune schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from finetune.schema import recipe_schema

    typer.echo(recipe_schema(), nl=False)


@app.command(epilog="Example: finetune preview icd10-quickstart --rows 3")
def preview(
    recipe: RecipeName,
    settings: Settings = None,
    rows: Annotated[int, typer.Option(min=1, help="Examples to show.")] = 3,
    cache: Cache = None,
) -> None:
    """Show training examples with the tokens that are trained on in colour."""
    from finetune.previewing import preview_recipe

    preview_recipe(_load(recipe, settings), rows, cache)


@app.command(epilog="Example: finetune init cases.csv --out cases.yaml")
def init(
    file: Annotated[
        Path,
        typer.Argument(
            help="Your rows: .csv, .tsv, .json, .jsonl (each may be gzipped) or .parquet.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Where the recipe is written; <name>.yaml if not given.")] = None,
    base: Annotated[str | None, typer.Option(help="Model of the hub; a small one for a CPU if not given.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; from the file's name if not given.")] = None,
    rows: Annotated[str | None, typer.Option(help="Row template, if the guess is wrong; a name or a .yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
) -> None:
    """Look at your file, guess what its columns are, and write a commented recipe for it."""
    from finetune.initialize import init_recipe

    init_recipe(file, out, base, name, force, rows)


@app.command(epilog="Example: finetune rows runs/my-recipe --reason too_long")
def rows(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    reason: Annotated[str | None, typer.Option(help="Only rows set aside for this reason.")] = None,
    line: Annotated[int | None, typer.Option(min=1, help="Only this line, with what stands there.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Rows to list.")] = 20,
) -> None:
    """List the rows that a run did not use, each with its file, line and reason."""
    from finetune.set_aside import show_set_aside

    show_set_aside(run, reason, line, most)


@app.command("list", epilog="Example: finetune list templates")
def list_things(
    what: Annotated[Listed, typer.Argument(help="recipes, templates or runs.")] = Listed.recipes,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
) -> None:
    """List shipped recipes, row templates, or the runs in a folder."""
    from finetune import listing

    match what:
        case Listed.recipes:
            listing.list_recipes()
        case Listed.templates:
            listing.list_templates()
        case Listed.runs:
            listing.list_runs(runs)


app.command("rerun", epilog="Example: finetune rerun --locked runs/icd10-quickstart")(rerun)
app.command("diff", epilog="Example: finetune diff runs/icd10-quickstart runs/icd10-lora")(diff)


app.add_typer(adapter)


app.command("export", epilog="Example: finetune export runs/icd10-quickstart --gguf q8_0 --out icd10.gguf")(export)
adapter.command("export", epilog="Example: finetune adapter export runs/icd10-quickstart --out icd10-lora.gguf")(
    export_adapter
)
app.command("launch-line", epilog="Example: finetune launch-line runs/icd10-quickstart --with vllm")(launch_line)


app.command("chat", epilog="Example: finetune chat runs/icd10-quickstart --compare base")(chat)
app.command("serve", epilog="Example: finetune serve runs/icd10-quickstart --port 8000")(serve)


app.command("publish", epilog="Example: finetune publish runs/icd10-quickstart --to org/name")(publish)


app.command(epilog="Example: finetune push staged/icd10 --to my-org/icd10-quickstart")(push)
app.command(epilog="Example: finetune pull my-org/icd10-quickstart --out icd10")(pull)
app.command(epilog="Example: finetune verify my-org/icd10-quickstart --data rows.csv=my/rows.csv")(verify)


def _load(
    recipe: str, settings: list[str] | None, devices: str | None = None, audit: str | None = None
) -> LoadedRecipe:
    from finetune.recipe_file import load_recipe

    options = {"training.devices": devices, "data.audit.masks": audit}
    stated = [f"{key}={value}" for key, value in options.items() if value is not None]
    return load_recipe(recipe, [*(settings or []), *stated])


def _run(loaded: LoadedRecipe, out: Path | None, cache: Path | None, until: Stage) -> None:
    from finetune.cache import default_cache
    from finetune.console import Reporter

    signals = Signals()
    with signals.listening():
        # Importing takes a second or two, and is heard out of as well.
        from finetune.pipeline import run_recipe

        try:
            run_recipe(loaded, _folder(loaded, out), cache or default_cache(), Reporter(), until, signals)
        except KeyboardInterrupt as interrupt:  # a library's own: typer would say that it aborted
            raise Interrupted(signal.SIGINT) from interrupt


def _forget_training(recipe: str, settings: list[str] | None, out: Path | None) -> None:
    from finetune.checkpoints import discard_checkpoints
    from finetune.run_directory import RunDirectory

    run = RunDirectory(_folder(_load(recipe, settings), out))
    with run.hold():
        discard_checkpoints(run)


def _folder(loaded: LoadedRecipe, out: Path | None) -> Path:
    return out or Path("runs") / loaded.recipe.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; problems of the user end in one screen and their own exit code."""
    quiet_libraries()
    given = list(sys.argv[1:] if arguments is None else arguments)
    hearing = nullcontext() if _hears_itself(given) else Signals(NOTHING_BY_HALVES).listening()
    try:
        with hearing, network_refused() if OFFLINE in given else nullcontext():
            app(args=[argument for argument in given if argument not in (TRACEBACK, OFFLINE)], prog_name="finetune")
    except Interrupted as interrupted:
        _fail(interrupted.what, interrupted.exit_code)
    except UserError as error:
        if TRACEBACK in given:
            raise
        _fail(str(error), error.exit_code)
    except Exception as error:
        if TRACEBACK in given:
            raise
        from finetune.disk_faults import as_told, disk_fault

        number = disk_fault(error)
        if number is not None:
            _fail(str(as_told(number, "the command", Path.cwd(), None)), MachineError.exit_code)
        # torch's own error is known by its name, since torch is not imported here.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            hint = "lower training.tokens_per_micro_batch, add `quantization:`, or use a larger machine"
            _fail(f"memory ran out\n  → {hint}", MachineError.exit_code)
        _fail(f"a fault of the program: {type(error).__name__}: {error}\n  → {TRACEBACK} shows where", EXIT_BROKEN)


def _hears_itself(given: Sequence[str]) -> bool:
    """Say whether a command has a use of its own for Ctrl-C: it stops an answer of a chat, and ends a server."""
    command = next((argument for argument in given if not argument.startswith("-")), "")
    return command == "chat" or (command == "serve" and "--prove" not in given)


def _fail(text: str, status: int) -> NoReturn:
    PrintableConsole(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(text)}")
    sys.exit(status)


if __name__ == "__main__":
    main()
