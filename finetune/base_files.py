"""Reads the files of a base weight by weight: nothing of it is loaded as a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import DataError
from finetune.peft_weights import EMBEDDING, HEAD


@dataclass(frozen=True)
class BaseFiles:
    """The weights of a base on this disk."""

    folder: Path
    config: dict[str, object]
    files: dict[str, str]
    """Name of a weight → file that holds it."""

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the input embedding, and so is not stored."""
        return f"{HEAD}.weight" not in self.files


def open_base(folder: Path) -> BaseFiles:
    """Look at a base's files without reading its weights.

    Raises:
        DataError: no weights, a damaged file, or one that is quantized.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("no model in this folder: its config.json is missing or damaged", where=str(folder)) from error
    if not isinstance(config, dict):
        raise DataError("no model in this folder: its config.json holds no object", where=str(folder))
    if "quantization_config" in config:
        hint = "name the full-precision model: a 4-bit weight rounds the adapter away (docs/log.md)"
        raise DataError("its weights are quantized, and are not folded into", where=str(folder), hint=hint)
    files: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                files |= dict.fromkeys(opened.keys(), path.name)
        except SafetensorError as error:
            raise DataError(f"the weights cannot be read: {error}", where=str(path)) from error
    if f"{EMBEDDING}.weight" not in files:
        what = f"there is no {EMBEDDING}.weight in it" if files else "no *.safetensors weights in this folder"
        raise DataError(what, where=str(folder), hint="name a LLaMA model as transformers writes it")
    files = {name: file for name, file in files.items() if not name.endswith(".rotary_emb.inv_freq")}
    base = BaseFiles(folder, config, files)
    if not base.tied and config.get("tie_word_embeddings") and _ends_are_equal(base):
        del files[f"{HEAD}.weight"]  # stored twice, and tied when it is loaded
    return base


def _ends_are_equal(base: BaseFiles) -> bool:
    return torch.equal(read_weight(base, f"{EMBEDDING}.weight"), read_weight(base, f"{HEAD}.weight"))


def read_weights(base: BaseFiles, without: Set[str] = frozenset()) -> Iterator[tuple[str, Tensor]]:
    """Yield every stored weight but some by its name, one at a time, in the order of the files.

    A file is open only while its weights are read: what was read of an open one stays in this process's memory.
    """
    ordered = sorted(base.files.items(), key=lambda item: (item[1], item[0]))
    for file, group in groupby(ordered, key=lambda item: item[1]):
        with safe_open(base.folder / file, framework="pt") as opened:
            for name, _ in group:
                if name not in without:
                    yield name, opened.get_tensor(name)


def read_weight(base: BaseFiles, name: str, rows: slice = slice(None)) -> Tensor:
    """Read one stored weight, or some of its rows."""
    with safe_open(base.folder / base.files[name], framework="pt") as file:
        weight: Tensor = file.get_tensor(name) if rows == slice(None) else file.get_slice(name)[rows]
    return weight


def weight_shape(base: BaseFiles, name: str) -> tuple[int, int]:
    """Return rows and columns of one stored weight without reading it; a vector is one column."""
    with safe_open(base.folder / base.files[name], framework="pt") as file:
        shape = file.get_slice(name).get_shape()
    return (shape[0], shape[1]) if len(shape) == 2 else (shape[0], 1)
