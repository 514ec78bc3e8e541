"""What a person decides about a publication; everything else comes from the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.errors import DataError, nearest
from finetune.publish_manifest import Part, names_repository

Domain = Literal["legal", "medical", "general"]
Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"]

_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
KINDS: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0", "q4_1", "q4_0")


@dataclass(frozen=True)
class PublishSettings:
    """The choices behind one published folder."""

    name: str
    """`org/name`, or a plain name."""
    cache: Path
    """Folder of fetched bases."""
    parts: tuple[Part, ...] = ("adapter",)
    gguf: tuple[Kind, ...] = ()
    """How the weights of GGUF files are stored, one file each."""
    license: str | None = None
    base_license: str | None = None
    data_licenses: tuple[tuple[str, str], ...] = ()
    """(source, licence); "" is every source that has none of its own."""
    license_files: tuple[tuple[str, Path], ...] = ()
    """(licence, file with its text); "" is the only licence whose text has to go along and is not here."""
    public_labels: bool = False
    """The labels of a classification are names of classes, the rare and the long ones too."""
    domain: Domain | None = None
    """What the limits of use are about; found from the recipe if not given."""
    languages: tuple[str, ...] = ()
    """ISO 639-1; those of the training rows if not given."""
    tags: tuple[str, ...] = ()


def parse_parts(texts: tuple[str, ...]) -> tuple[tuple[Part, ...], tuple[Kind, ...]]:
    """Read `adapter`, `merged`, `gguf` or `gguf:KIND`; parts in a fixed order, and the kinds of GGUF files.

    Raises:
        DataError: it is none of them.
    """
    kinds: dict[Kind, None] = {}
    named: set[str] = set()
    for text in texts or ("adapter",):
        part, _, kind = text.partition(":")
        if part not in ("adapter", "merged", "gguf") or (kind and part != "gguf"):
            hint = nearest(text, ["adapter", "merged", *(f"gguf:{one}" for one in KINDS)])
            raise DataError(f"{text!r} is no part of a model", where="--part", hint=hint)
        named.add(part)
        if part == "gguf":
            kinds[_kind(kind or "bf16")] = None
    parts = tuple(part for part in ("adapter", "merged", "gguf") if part in named)
    return parts, tuple(kinds)


def parse_data_licences(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Read `SOURCE=ID`, or `ID` for every source; a source may have = in it, as `pypi:NAME==VERSION/…` has."""
    return tuple((source, licence) for source, _, licence in (text.rpartition("=") for text in texts))


def parse_licence_files(texts: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """Read `ID=FILE`, or `FILE`; what stands before = is an id only if no file is called like the whole."""
    pairs = (("", "", text) if Path(text).is_file() else text.rpartition("=") for text in texts)
    return tuple((licence, Path(file)) for licence, _, file in pairs)


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text == kind:
            return kind
    raise DataError(f"{text!r} is no kind of GGUF file", where="--part", hint=f"kinds: {', '.join(KINDS)}")


def published_name(stated: str | None, target: str | None, run: Path) -> str:
    """Name what is published: as stated, as the target says, or like the run's folder.

    Raises:
        DataError: it cannot be a name on the hub, or is another than that of the target there.
    """
    on_hub = target if target and ":" not in target else None
    if stated and on_hub and not names_repository(stated, on_hub):
        raise DataError(f"{stated!r} is not the name of {on_hub}", where="--as", hint=f"leave it out, or --to {stated}")
    name = on_hub or stated or run.resolve().name
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} cannot be a name", where="--as", hint="org/name, of letters, digits, - _ and .")
    return name


def check_target(target: str | None, stage_only: bool) -> None:
    """Check that it is said where a publication goes.

    Raises:
        DataError: nobody says so, and it is not said either that it stays here.
    """
    if target is None and not stage_only:
        raise DataError("nobody says where to", where="--to", hint="--to org/name, --to folder:PATH, or --stage-only")
