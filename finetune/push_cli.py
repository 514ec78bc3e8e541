"""The command line of `push`, `pull` and `verify`: reads arguments and calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[Path | None, typer.Option(help="Folder of the base; looked for in the cache if not given.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases and data.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository of the hub.")]
SOURCE = "org/name of the hub, folder:PATH, or an address such as s3://bucket/path."


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `finetune publish` staged.", show_default=False)],
    to: Annotated[str, typer.Option(help=SOURCE, show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; private if not given.")] = False,
    base: Base = None,
    cache: Cache = None,
) -> None:
    """Send a staged folder in one commit, then download it in a fresh process and compare every byte."""
    from finetune.console import Reporter
    from finetune.pushing import push as push_folder

    push_folder(folder, to, public=public, reporter=Reporter(), base=base, cache=cache)


def pull(
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder to write; named as the source if not given.")] = None,
    revision: Revision = None,
    base: Base = None,
    cache: Cache = None,
) -> None:
    """Fetch a published adapter or model and check what can be checked: hashes, base, template, weights."""
    from finetune.cache import default_cache
    from finetune.console import Reporter
    from finetune.pulling import Pull
    from finetune.pulling import pull as pull_published

    pull_published(Pull(source, revision, base, cache or default_cache()), out, Reporter())


def verify(
    source: Annotated[str, typer.Argument(help="A folder, or what `finetune pull` takes.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=FILE", help="Where a file of the recipe lies that was not published. Repeatable."),
    ] = None,
    revision: Revision = None,
    base: Base = None,
    cache: Cache = None,
) -> None:
    """Score what was published again, from its own recipe, and say of each figure whether it repeats."""
    from finetune.cache import default_cache
    from finetune.console import Reporter
    from finetune.pulling import Pull
    from finetune.verifying import verify as verify_published

    verify_published(Pull(source, revision, base, cache or default_cache()), data or [], Reporter())
