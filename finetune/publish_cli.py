"""The command line of `finetune publish`: reads arguments, builds the folder, and sends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def publish(  # noqa: PLR0913  # each option of the command is a parameter
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="org/name on the hub, or folder:PATH.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", help="Name in the card, where the target does not say it.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="adapter, merged or gguf:KIND (f32, f16, bf16, q8_0, q4_1, q4_0). Repeatable."),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="Licence to publish under; worked out from base and data if not given."),
    ] = None,
    base_license: Annotated[str | None, typer.Option(help="Licence of the base, where it is not known.")] = None,
    data_license: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SOURCE=]ID", help="Licence of one source, or of all; `own` for your own rows. Repeatable."
        ),
    ] = None,
    license_file: Annotated[
        Path | None, typer.Option(help="Text of the base's licence, where it has to go along.")
    ] = None,
    domain: Annotated[
        Literal["legal", "medical", "general"] | None,
        typer.Option(help="What it is about; told by the recipe's words."),
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Such as en; found in the rows if not given.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag in the card's metadata. Repeatable.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private if not given.")] = False,
    stage_only: Annotated[
        bool, typer.Option("--stage-only", help="Build the folder, look at it, send nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to build; RUN/published if not given.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for fetched bases.")] = None,
) -> None:
    """Build a clean folder of a run with its evidence and licence, look through every byte, and send it."""
    from finetune.cache import default_cache
    from finetune.console import Reporter
    from finetune.errors import DataError
    from finetune.publish_settings import PublishSettings, parse_data_licences, parse_parts, published_name
    from finetune.publishing import stage
    from finetune.run_directory import RunDirectory

    if to is None and not stage_only:
        raise DataError("nobody says where to", where="--to", hint="--to org/name, --to folder:PATH, or --stage-only")
    parts, gguf = parse_parts(tuple(part or ()))
    settings = PublishSettings(
        name=published_name(name, to, run),
        cache=cache or default_cache(),
        parts=parts,
        gguf=gguf,
        license=license_,
        base_license=base_license,
        data_licenses=parse_data_licences(tuple(data_license or ())),
        license_file=license_file,
        domain=domain,
        languages=tuple(language or ()),
        tags=tuple(tag or ()),
    )
    reporter, folder = Reporter(), out or run / "published"
    stage(RunDirectory(run), settings, folder, reporter)
    reporter.say(f"built {folder}")
    if to is None or stage_only:
        return
    from finetune.pushing import push

    push(folder, to, public=public, reporter=reporter)
