"""The command line of `finetune rerun` and `finetune diff`: repeats a run, and sets two beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Folder of the new run; RUN-again if not given.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases and data.")]
Locked = Annotated[
    bool, typer.Option("--locked", help="Refuse where base, rows, tokenizer, templates or machine are not as locked.")
]
OtherMachine = Annotated[
    bool, typer.Option("--other-machine", help="With --locked: go on where only machine or packages are others.")
]


def rerun(
    run: Run, locked: Locked = False, other_machine: OtherMachine = False, out: Out = None, cache: Cache = None
) -> None:
    """Repeat a run in a new folder and say whether it is bit-identical, or what differs. Exits 0 or 7."""
    from finetune.cache import default_cache
    from finetune.console import Reporter
    from finetune.rerunning import Rerun
    from finetune.rerunning import rerun as repeat
    from finetune.run_directory import RunDirectory
    from finetune.signals import Signals

    folder = run.resolve()
    asked = Rerun(
        run=RunDirectory(run),
        out=out or folder.with_name(f"{folder.name}-again"),
        cache=cache or default_cache(),
        locked=locked,
        other_machine=other_machine,
    )
    again = RunDirectory(asked.out)
    what = f"interrupted; what is finished is kept: finetune run {again.recipe} --out {asked.out} goes on from there"
    signals = Signals(what)
    with signals.listening():
        repeat(asked, Reporter(), signals)


def diff(
    one: Run,
    other: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, to the end of every figure.")] = False,
) -> None:
    """Show what differs between two runs: recipe, what went in, machine, rows, training, merge and scores."""
    from rich.console import Console

    from finetune.run_diff import compare_runs
    from finetune.run_diff_tables import tables
    from finetune.run_directory import RunDirectory

    found = compare_runs(RunDirectory(one), RunDirectory(other))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = Console(highlight=False)
    for table in tables(found):
        console.print(table)
