"""Copies of adapter, merged model and tokenizer with nothing in them that belongs to one machine."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from pydantic import JsonValue

from evaluation.files import sha256_of_file, sha256_of_json, write_model
from finetune.base_hashes import is_of_base
from finetune.merge_records import MERGE_FILE, MergeProof
from finetune.peft_config import CONFIG_FILE
from finetune.peft_weights import ADAPTER_FILE
from finetune.publish_manifest import PublishedBase
from finetune.run_directory import RunDirectory

TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
MODEL_FILES = ("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", MERGE_FILE)
_CLEANED = ("tokenizer_config.json", "config.json", "generation_config.json", "special_tokens_map.json")
LOCAL_KEYS = frozenset(
    {
        "is_local",
        "local_files_only",
        "name_or_path",
        "_name_or_path",
        "_model_name_or_path",
        "gguf_file",
        "_commit_hash",
        "tokenizer_file",
        "vocab_file",
        "merges_file",
        "special_tokens_map_file",
    }
)
"""What transformers notes about where a model was loaded from."""


def write_adapter_part(run: RunDirectory, folder: Path, base: PublishedBase) -> None:
    """Write the adapter with its base named as anybody can fetch it, and the tokenizer that it was trained with."""
    shutil.copyfile(run.adapter / ADAPTER_FILE, folder / ADAPTER_FILE)
    config = json.loads((run.adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.model, "revision": base.revision, "inference_mode": True}
    write_sorted(folder / CONFIG_FILE, {key: _in_order(value) for key, value in config.items()})
    copy_cleaned(run.adapter, folder, TOKENIZER_FILES)


def write_merged_part(run: RunDirectory, folder: Path) -> None:
    """Write the merged model and its tokenizer, weights byte for byte; its proof lists the files as they are here."""
    folder.mkdir(exist_ok=True)
    copy_cleaned(run.merged, folder, (*MODEL_FILES, *TOKENIZER_FILES))
    proof = MergeProof.model_validate_json((run.merged / MERGE_FILE).read_bytes())
    files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if is_of_base(path.name)}
    write_model(folder / MERGE_FILE, proof.model_copy(update={"files": files}))


def copy_cleaned(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy files of these names; settings lose their local keys and are sorted."""
    for path in sorted(source.iterdir()):
        if not path.is_file() or not any(fnmatch(path.name, pattern) for pattern in patterns):
            continue
        if path.name in _CLEANED:
            write_sorted(folder / path.name, without_local_keys(json.loads(path.read_text(encoding="utf-8"))))
        else:
            shutil.copyfile(path, folder / path.name)


def without_local_keys(value: JsonValue) -> JsonValue:
    """Return settings without what says where they were loaded from, at any depth."""
    if isinstance(value, dict):
        return {key: without_local_keys(item) for key, item in value.items() if key not in LOCAL_KEYS}
    return [without_local_keys(item) for item in value] if isinstance(value, list) else value


def write_sorted(path: Path, value: JsonValue) -> None:
    """Write JSON that is the same however it came about."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def hash_without_proof(folder: Path) -> str:
    """Hash a merged model as it was when its proof was written beside it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sha256_of_json([[name, sha256_of_file(folder / name)] for name in names if name != MERGE_FILE])


def _in_order(value: JsonValue) -> JsonValue:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value, key=str)
    return value
