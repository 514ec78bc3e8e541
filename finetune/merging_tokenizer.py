"""The tokenizer of a written model, and the tokens that end its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from evaluation.errors import UserError
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.base_files import BaseFiles
from finetune.errors import DataError
from finetune.peft_weights import PeftFolder

SETTINGS_FILE = "generation_config.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer of a model or an adapter, if it has one."""
    for pattern in _TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def stated_stops(folder: Path) -> tuple[int, ...]:
    """Return the tokens that end an answer of this model by its own settings, as plain transformers reads them."""
    file = folder / (SETTINGS_FILE if (folder / SETTINGS_FILE).exists() else "config.json")
    stated = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    return (stated,) if isinstance(stated, int) else tuple(stated or ())


def trained_stops(folder: Path) -> tuple[int, ...]:
    """Return the tokens that end an answer by the tokenizer and template of a folder.

    Empty where the template marks no end, so that there is none to name.
    """
    try:
        return Renderer(load_tokenizer(folder)).stop_ids()
    except UserError:
        return ()


def add_tokenizer(base: BaseFiles, adapter: PeftFolder, folder: Path, rows: int) -> None:
    """Copy the tokenizer that the adapter was trained with, or the base's, and check that each token has its row.

    Raises:
        DataError: a token of it has no row in the embedding.
    """
    source = adapter.folder if (adapter.folder / _TOKENIZER).exists() else base.folder
    copy_tokenizer(source, folder)
    for origin in (base.folder, source):
        if (origin / SETTINGS_FILE).exists():
            shutil.copyfile(origin / SETTINGS_FILE, folder / SETTINGS_FILE)
    if (folder / _TOKENIZER).exists():
        _add_stops(folder)
        largest = _largest_token_id(folder / _TOKENIZER)
        if largest >= rows:
            raise DataError(
                f"the tokenizer has tokens up to {largest} and the embedding {rows} rows",
                where=str(adapter.folder),
                hint="the rows of added tokens are missing: save the adapter with save_embedding_layers=True",
            )


def _add_stops(folder: Path) -> None:
    """Have a written model's settings name the tokens that its template ends answers with, beside those they name."""
    stated, trained = stated_stops(folder), trained_stops(folder)
    if set(trained) <= set(stated):
        return
    file = folder / SETTINGS_FILE
    found = file if file.exists() else folder / "config.json"
    settings = json.loads(found.read_text(encoding="utf-8"))
    if found != file:  # what transformers takes from there where there is no such file
        settings = {name: settings[name] for name in ("bos_token_id", "pad_token_id") if name in settings}
    settings["eos_token_id"] = sorted({*stated, *trained})
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _largest_token_id(file: Path) -> int:
    from tokenizers import Tokenizer

    return max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values())
