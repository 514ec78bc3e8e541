"""The command line of `finetune adapter`: reads arguments and calls one function."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

adapter = typer.Typer(
    name="adapter", help="Look at adapters, mix them, extract one, fold one into its base.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="An adapter folder, as peft writes it.", show_default=False)]
BaseName = Annotated[
    str | None,
    typer.Option("--base", help="Folder or hub id of the base; as the adapter or its run names it if not given."),
]
Out = Annotated[Path, typer.Option(help="Folder to write.", show_default=False)]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases.")]


class Way(StrEnum):
    """How adapters are mixed."""

    cat = "cat"
    sum = "sum"
    ties = "ties"
    dare = "dare"


@adapter.command("list", epilog="Example: finetune adapter list runs")
def list_(
    folder: Annotated[Path, typer.Argument(help="Looked through with all folders in it.")] = Path("runs"),
) -> None:
    """List every adapter below a folder."""
    from finetune.adapter_commands import list_adapters

    list_adapters(folder)


@adapter.command(epilog="Example: finetune adapter show runs/icd10-quickstart/adapter")
def show(folder: Folder) -> None:
    """Show an adapter's settings, and how large its changes are."""
    from finetune.adapter_commands import show_adapter

    show_adapter(folder)


@adapter.command(epilog="Example: finetune adapter check ./lora --base meta-llama/Llama-3.2-1B")
def check(folder: Folder, base: BaseName = None, cache: Cache = None) -> None:
    """Check that an adapter is whole, finite, and fits its base. Exits 0 or 3."""
    from finetune.adapter_commands import check_adapter

    check_adapter(folder, base, _cache(cache))


@adapter.command(epilog="Example: finetune adapter diff runs/a/adapter runs/b/adapter")
def diff(one: Folder, other: Folder) -> None:
    """Show how alike two adapters are."""
    from finetune.adapter_commands import diff_adapters

    diff_adapters(one, other)


@adapter.command(epilog="Example: finetune adapter combine a/adapter=0.7 b/adapter=0.3 --how ties --out mixed")
def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(help="Adapters of one base, each with its weight; 1 if not given.", show_default=False),
    ],
    out: Out,
    how: Annotated[Way, typer.Option(help="cat is exact and adds the ranks; the others go back to --rank.")] = Way.cat,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result; the largest if not given.")] = None,
    density: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of entries that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
) -> None:
    """Mix several adapters on their weight changes, and say how much of the mix the rank keeps."""
    from finetune.adapter_combining import Mix
    from finetune.adapter_commands import combine_adapters

    folders, weights = zip(*(_weighted(text) for text in adapters), strict=True)
    combine_adapters(folders, Mix(how.value, weights, rank, density, seed), out)


@adapter.command(epilog="Example: finetune adapter extract ./tuned --base ./base --rank 32 --out ./lora")
def extract(
    tuned: Annotated[Path, typer.Argument(help="Folder of the model that was tuned.", show_default=False)],
    base: Annotated[str, typer.Option(help="Folder or hub id of the model that it was made from.", show_default=False)],
    out: Out,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    cache: Cache = None,
) -> None:
    """Make an adapter from the difference of two models."""
    from finetune.adapter_commands import extract as extract_from

    extract_from(tuned, base, rank, out, _cache(cache))


@adapter.command(epilog="Example: finetune adapter merge ./lora --base meta-llama/Llama-3.2-1B --out ./merged")
def merge(
    folder: Folder,
    out: Out,
    base: BaseName = None,
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Type of the weights.")] = "bfloat16",
    cache: Cache = None,
) -> None:
    """Fold any peft adapter into its base, weight by weight, and prove the result from the files."""
    from finetune.adapter_commands import merge_adapter

    merge_adapter(folder, base, out, dtype, _cache(cache))


def _cache(named: Path | None) -> Path:
    from finetune.cache import default_cache

    return named or default_cache()


def _weighted(text: str) -> tuple[Path, float]:
    from finetune.errors import TaskError

    path, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(number)
    except ValueError as error:
        raise TaskError(f"{number!r} is no weight", where=text, hint="such as runs/a/adapter=0.7") from error
