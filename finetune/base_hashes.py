"""What a base consists of, by name and hash, and the word of whoever made one in the cache that it is whole."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from evaluation.files import sha256_of_file, sha256_of_json, write_text

HASHED_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)
"""What a base consists of; a readme beside them changes nothing."""

VOUCHER = "whole.sha256"
"""Beside the files of a base that was made or fetched: their hash, with the name of the entry that they are."""

FileHashes = tuple[tuple[str, str], ...]
"""Names of the files that a base consists of, with the hash of each, in order of the names."""


def is_of_base(name: str) -> bool:
    """Tell whether a file of this name is one that a base consists of."""
    return any(fnmatch(name, pattern) for pattern in HASHED_FILES)


def hash_base_files(folder: Path) -> FileHashes:
    """Hash the files that a base consists of."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and is_of_base(path.name))
    return tuple((name, sha256_of_file(folder / name)) for name in names)


def hash_of_files(files: Iterable[tuple[str, str]]) -> str:
    """Return one hash of files with their names, as 64 hex digits."""
    return sha256_of_json([[name, sha256] for name, sha256 in files])


def vouch_for(file: Path, entry: str, files: FileHashes) -> None:
    """Write down that an entry of the cache is whole with these files; the last thing that is done to it."""
    write_text(file, _vouched(entry, files))


def is_vouched_for(file: Path, entry: str, files: FileHashes) -> bool:
    """Tell whether an entry of the cache has just the files that it was made with; another entry's are not taken."""
    try:
        return file.read_text(encoding="utf-8") == _vouched(entry, files)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _vouched(entry: str, files: FileHashes) -> str:
    return sha256_of_json([entry, [[name, sha256] for name, sha256 in files]])
