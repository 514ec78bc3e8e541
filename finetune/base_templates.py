"""A base with another chat template: a folder of links to its files, and the template in place of its own.

Everything that is made from the base takes the template from that folder: training, scoring, merging, what is saved.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from evaluation.files import sha256_of_file, sha256_of_json, staged_folder
from finetune.base_hashes import FileHashes, is_of_base
from finetune.cache import locked, templated_entry
from finetune.chat_templates import require_control_tokens, special_tokens_of
from finetune.errors import DataError

_TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def with_chat_template(
    base: Path, files: FileHashes, template: str, cache: Path, where: str
) -> tuple[Path, FileHashes]:
    """Return the folder of the base with this template and the hashes of its files; it is made where it is missing.

    Raises:
        DataError: the base's tokenizer lacks a control token of the template.
    """
    require_control_tokens(template, special_tokens_of(base), where)
    entry = templated_entry(cache, sha256_of_json([[list(file) for file in files], template]))
    with locked(entry):
        if not _is_whole(entry, base, files, template):
            with staged_folder(entry) as folder:
                _fill(folder, base, files, template)
    hashes = dict(files) | {name: sha256_of_file(entry / name) for name in _own_names(entry)}
    return entry, tuple((name, hashes[name]) for name in sorted(hashes) if (entry / name).is_file())


def _fill(folder: Path, base: Path, files: FileHashes, template: str) -> None:
    for name in _linked_names(files):
        source = (base / name).resolve()  # a snapshot of the hub consists of symbolic links
        try:
            os.link(source, folder / name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, folder / name)
    if (base / _TOKENIZER_CONFIG).is_file():
        config = _tokenizer_config(base)
        (folder / _TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / _TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _is_whole(entry: Path, base: Path, files: FileHashes, template: str) -> bool:
    """Tell whether an entry holds what it is named by: a link to the base's file, or a copy with the same hash."""
    hashes = dict(files)
    made = {*_linked_names(files), _TEMPLATE_FILE} | ({_TOKENIZER_CONFIG} & hashes.keys())
    if not entry.is_dir() or {path.name for path in entry.iterdir() if is_of_base(path.name)} != made:
        return False
    for name in _linked_names(files):
        path = entry / name
        if not path.is_file():
            return False
        if not path.samefile(base / name) and sha256_of_file(path) != hashes[name]:
            return False
    if (base / _TOKENIZER_CONFIG).is_file():
        try:
            if json.loads((entry / _TOKENIZER_CONFIG).read_text(encoding="utf-8")) != _tokenizer_config(base):
                return False
        except (OSError, ValueError):
            return False
    own = entry / _TEMPLATE_FILE
    return own.is_file() and own.read_text(encoding="utf-8") == template


def _tokenizer_config(base: Path) -> dict[str, object]:
    """Return the tokenizer's configuration without a template, which an older loader would take instead of ours."""
    try:
        config = json.loads((base / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{_TOKENIZER_CONFIG} is not JSON: {error}", where="base") from error
    return {key: value for key, value in config.items() if key != "chat_template"}


def _linked_names(files: FileHashes) -> list[str]:
    return [name for name, _ in files if name != _TOKENIZER_CONFIG and not name.startswith("chat_template.")]


def _own_names(entry: Path) -> list[str]:
    return [name for name in (_TEMPLATE_FILE, _TOKENIZER_CONFIG) if (entry / name).is_file()]
