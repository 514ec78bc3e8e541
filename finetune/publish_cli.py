"""The command line of `finetune publish`: reads arguments, builds the folder, and sends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)]
Target = Annotated[str | None, typer.Option("--to", metavar="TARGET", help="org/name on the hub, or folder:PATH.")]
Name = Annotated[str | None, typer.Option("--as", help="Name in the card, where the target does not say it.")]
Parts = Annotated[
    list[str] | None,
    typer.Option("--part", help="adapter, merged or gguf:KIND (f32, f16, bf16, q8_0, q4_1, q4_0). Repeatable."),
]
Choice = Annotated[
    str | None, typer.Option("--license", help="Licence to publish under; worked out from base and data if not given.")
]
BaseLicence = Annotated[str | None, typer.Option("--base-license", help="Licence of the base, where it is not known.")]
DataLicences = Annotated[
    list[str] | None,
    typer.Option(
        "--data-license", metavar="[SOURCE=]ID", help="Licence of one source, or of all; `own` for yours. Repeatable."
    ),
]
LicenceText = Annotated[
    list[str] | None,
    typer.Option(
        "--license-file",
        metavar="[ID=]FILE",
        help="Text of a licence that has to go along. Repeatable.",
    ),
]
PublicLabels = Annotated[
    bool, typer.Option("--public-labels", help="All labels are names of classes, the rare and the long ones too.")
]
About = Annotated[
    Literal["legal", "medical", "general"] | None,
    typer.Option("--domain", help="What it is about; told by the recipe."),
]
Languages = Annotated[list[str] | None, typer.Option("--language", help="Such as en; found in the rows if not given.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag in the card's metadata. Repeatable.")]
Public = Annotated[bool, typer.Option("--public", help="For everybody to see; private if not given.")]
StageOnly = Annotated[bool, typer.Option("--stage-only", help="Build the folder to look at it, and send nothing.")]
Out = Annotated[Path | None, typer.Option(help="Folder to build; RUN/published if not given.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases.")]


def publish(  # noqa: PLR0913  # each option of the command is a parameter
    run: RunFolder,
    to: Target = None,
    name: Name = None,
    part: Parts = None,
    license_: Choice = None,
    base_license: BaseLicence = None,
    data_license: DataLicences = None,
    license_file: LicenceText = None,
    public_labels: PublicLabels = False,
    domain: About = None,
    language: Languages = None,
    tag: Tags = None,
    public: Public = False,
    stage_only: StageOnly = False,
    out: Out = None,
    cache: Cache = None,
) -> None:
    """Build a clean folder of a run with its evidence and licence, look through every byte, and send it."""
    from finetune.cache import default_cache
    from finetune.console import Reporter
    from finetune.publish_settings import (
        PublishSettings,
        check_target,
        parse_data_licences,
        parse_licence_files,
        parse_parts,
        published_name,
    )
    from finetune.publishing import local_base, stage
    from finetune.run_directory import RunDirectory

    check_target(to, stage_only)
    parts, gguf = parse_parts(tuple(part or ()))
    settings = PublishSettings(
        name=published_name(name, to, run),
        cache=cache or default_cache(),
        parts=parts,
        gguf=gguf,
        license=license_,
        base_license=base_license,
        data_licenses=parse_data_licences(tuple(data_license or ())),
        license_files=parse_licence_files(tuple(license_file or ())),
        public_labels=public_labels,
        domain=domain,
        languages=tuple(language or ()),
        tags=tuple(tag or ()),
    )
    reporter, folder = Reporter(), out or run / "published"
    stage(RunDirectory(run), settings, folder, reporter)
    reporter.say(f"built {folder}")
    if to is not None and not stage_only:
        from finetune.pushing import push

        base = local_base(RunDirectory(run))
        push(folder, to, public=public, reporter=reporter, base=base, cache=settings.cache)
