"""The command `evaluation`: score a model on tasks, compare two contenders, list the bundled tasks.

Nothing heavy is imported before a command needs it, so that `--help` and shell completion answer at once.
Only this module prints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from evaluation.errors import DataError, TaskError, UserError
from evaluation.interruption import Interrupted, listening
from evaluation.offline import network_refused
from evaluation.quiet import quiet_libraries
from evaluation.screen import PrintableConsole

if TYPE_CHECKING:
    from evaluation.inference import LanguageModel
    from evaluation.results import Identity, Result
    from evaluation.table import Table
    from evaluation.task import LoadedTask

_TRACEBACK = "--traceback"
_OFFLINE = "--offline"

app = typer.Typer(
    name="evaluation",
    help="Score Hugging Face causal language models, with or without an adapter, on typed tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option(_TRACEBACK, help="Show the traceback of an error.")] = False,
    offline: Annotated[bool, typer.Option(_OFFLINE, help="Refuse all network, and name whoever asks.")] = False,
) -> None:
    """Score Hugging Face causal language models, with or without an adapter, on typed tasks."""


@app.command()
def run(  # noqa: PLR0913  # each option of the command is a parameter
    model: Annotated[Path, typer.Option(help="Folder with safetensors weights and a tokenizer.")],
    task: Annotated[list[str], typer.Option(help="Bundled task or task file (.yaml); may be given again.")],
    out: Annotated[Path, typer.Option(help="Folder for results: OUT/NAME/TASK.json.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of a PEFT adapter to put on the model.")] = None,
    quantization: Annotated[
        Literal["nf4", "int8"] | None, typer.Option(help="Load the model in 4 bits, as in QLoRA training.")
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Type of weights and arithmetic.")
    ] = "bfloat16",
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda:0`, …")] = "auto",
    name: Annotated[str | None, typer.Option(help="Contender's name; the last folder's if not given.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first this many samples.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap intervals.")] = 0,
) -> None:
    """Score a model on one or more tasks, and write every answer with its scores.

    Examples:

    `evaluation run --model models/base --task plain_facts --out results`

    `evaluation run --model base --adapter runs/x/adapter --quantization nf4 --task my.yaml --out results`
    """
    from evaluation.task_file import load_task

    contender = name or (adapter or model).resolve().name
    _check_name(contender)
    loaded = [load_task(one, limit) for one in task]
    _check_names_differ(loaded)
    for folder in (model, adapter):
        if folder is not None and not folder.is_dir():
            raise DataError("there is no such folder", where=str(folder))
    # All that can be checked without torch is checked by now: a mistake in the last task costs no waiting.
    from evaluation.inference import load_language_model
    from evaluation.model import ModelSpec, Quantization
    from evaluation.results import Identity
    from evaluation.runner import installed_versions

    spec = ModelSpec(model, adapter, Quantization(quantization) if quantization else None, dtype, device)
    model_sha256, adapter_sha256 = spec.sha256()
    identity = Identity(
        contender=contender,
        model_sha256=model_sha256,
        adapter_sha256=adapter_sha256,
        quantization=str(spec.quantization) if spec.quantization else None,
        dtype=dtype,
        task_sha256="",
        seed=seed,
        versions=installed_versions(),
    )
    _score_all(load_language_model(spec), loaded, identity, out)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="Folder that `evaluation run --out` wrote to.")],
    contender: Annotated[str, typer.Argument(help="Whose gain is asked for.")],
    against: Annotated[str, typer.Argument(help="What it is compared with.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap intervals.")] = 0,
) -> None:
    """Compare two contenders sample by sample, with 95 % intervals of the differences.

    Examples:

    `evaluation compare results adapter base`

    `evaluation compare results adapter base --task plain_facts --markdown`
    """
    from evaluation.comparison import difference_table, differences, score_table
    from evaluation.result_files import list_tasks, load_result
    from evaluation.runner import Scored

    names = task or [name for name in list_tasks(folder, contender) if name in list_tasks(folder, against)]
    if not names:
        raise DataError(
            f"{contender} and {against} have no task in common",
            where=str(folder),
            hint=f"it holds results of: {_contenders(folder)}",
        )
    for one in names:
        ours, theirs = (Scored(*load_result(folder, who, one)) for who in (contender, against))
        found = differences(ours, theirs, seed)
        _print_table(f"{one}: scores [95 %]", score_table([ours.result, theirs.result]), markdown)
        _print_table(f"{one}: {contender} minus {against}", difference_table(found), markdown)


@app.command()
def tasks() -> None:
    """List the bundled tasks.

    Example: `evaluation tasks`
    """
    from evaluation.table import Table
    from evaluation.task_file import list_bundled_tasks, load_task

    loaded = [load_task(name) for name in list_bundled_tasks()]
    rows = tuple((one.task.name, one.task.kind, str(len(one.samples)), one.task.description) for one in loaded)
    _print_table("bundled tasks", Table(("task", "kind", "samples", "description"), rows), markdown=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is shown on one screen and sets the exit code."""
    quiet_libraries()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with listening(), network_refused() if _OFFLINE in given else nullcontext():
            app(args=[argument for argument in given if argument not in (_TRACEBACK, _OFFLINE)], prog_name="evaluation")
    except Interrupted as interrupted:
        _fail(interrupted, interrupted.exit_code)
    except UserError as error:
        if _TRACEBACK in given:
            raise
        _fail(error, error.exit_code)


def _fail(error: BaseException, status: int) -> NoReturn:
    PrintableConsole(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
    raise SystemExit(status) from error


def _check_name(contender: str) -> None:
    from evaluation.result_files import CONTENDER_NAME

    if not CONTENDER_NAME.fullmatch(contender):
        raise TaskError(f"{contender!r} cannot name a contender", where="--name", hint="such as --name my-model")


def _check_names_differ(loaded: Sequence[LoadedTask]) -> None:
    names = [one.task.name for one in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"two tasks are named {twice[0]!r} and would write to one file", where="--task")


def _score_all(model: LanguageModel, loaded: Sequence[LoadedTask], identity: Identity, out: Path) -> None:
    from evaluation.comparison import score_table
    from evaluation.result_files import write_result
    from evaluation.runner import count_steps, score

    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=PrintableConsole(stderr=True)) as progress:
        for one in loaded:
            bar = progress.add_task(one.task.name, total=count_steps(one))
            own = identity.model_copy(update={"task_sha256": one.sha256})
            scored = score(model, one, own, partial(progress.advance, bar))
            results.append(write_result(out, scored.result, scored.outputs))
    for result in results:
        _print_table(f"{result.task}: scores [95 %]", score_table([result]), markdown=False)


def _contenders(folder: Path) -> str:
    from evaluation.result_files import list_contenders

    return ", ".join(list_contenders(folder)) or "nobody"


def _print_table(title: str, table: Table, markdown: bool) -> None:
    if markdown:
        typer.echo(f"**{title}**\n\n{table.markdown()}\n")
        return
    rich_table = RichTable(title=escape(title), title_justify="left")
    for column in table.header:
        rich_table.add_column(escape(column))
    for row in table.rows:
        rich_table.add_row(*(escape(cell) for cell in row))
    PrintableConsole().print(rich_table)
