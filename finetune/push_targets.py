"""Where a staged folder can be published: a repository of the hub, a folder, or a place that fsspec can write to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune.errors import TaskError

FOLDER_PREFIX = "folder:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.ASCII)
_ACCEPTED = "org/name of the Hugging Face hub, folder:PATH, or an address such as s3://bucket/path"

SAFE_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".gguf", ".yaml", ".yml", ".model")
SAFE_NAMES = ("LICENSE", "LICENSE.base", "NOTICE", "Modelfile")
SAFE_PATTERNS = (*(f"*{suffix}" for suffix in SAFE_SUFFIXES), *SAFE_NAMES, *(f"*/{name}" for name in SAFE_NAMES))
"""What is sent and fetched: weights in safetensors or GGUF, and text; nothing that is pickled or run."""


@dataclass(frozen=True)
class HubTarget:
    """A model repository of the Hugging Face hub."""

    repo: str

    def __str__(self) -> str:
        return self.repo


@dataclass(frozen=True)
class FolderTarget:
    """A folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return f"{FOLDER_PREFIX}{self.path}"


@dataclass(frozen=True)
class UrlTarget:
    """A place that fsspec can write to."""

    url: str

    def __str__(self) -> str:
        return self.url


Target = HubTarget | FolderTarget | UrlTarget


def parse_target(text: str) -> Target:
    """Turn what the command line says into a target.

    Raises:
        TaskError: it is none of the accepted forms.
    """
    if text.startswith(FOLDER_PREFIX) and text != FOLDER_PREFIX:
        return FolderTarget(Path(text.removeprefix(FOLDER_PREFIX)))
    if "@" in text.partition("://")[2].partition("/")[0]:
        hint = "passwords and keys come from the environment or the service's own settings"
        raise TaskError("an address with a user or a password in it", where=text.partition("://")[0], hint=hint)
    if _URL.fullmatch(text):
        return UrlTarget(text.rstrip("/"))
    if _HUB_ID.fullmatch(text):
        return HubTarget(text)
    hint = f"write {FOLDER_PREFIX}{text}" if Path(text).is_dir() or text.startswith((".", "/")) else _ACCEPTED
    raise TaskError("nothing can be published under this name", where=text or "''", hint=hint)


def parse_source(text: str) -> Target:
    """The same for what is read; a folder with files in it needs no `folder:`.

    Raises:
        TaskError: it is none of the accepted forms.
    """
    return FolderTarget(Path(text)) if Path(text).is_dir() else parse_target(text)


def is_safe_name(path: str) -> bool:
    """Tell whether a file may be sent and fetched: of a kind that holds no code, and inside its folder."""
    parts = PurePosixPath(path).parts
    if path != "/".join(parts) or ".." in parts or path.startswith("/") or "\\" in path:
        return False
    return PurePosixPath(path).suffix in SAFE_SUFFIXES or PurePosixPath(path).name in SAFE_NAMES
