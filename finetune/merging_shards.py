"""Folds an adapter into the files of its base, weight by weight: memory does not grow with the model.

Each weight is folded in fp32 and rounded once, when it is written. Nothing of the base is loaded as a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation.files import staged_folder
from evaluation.model import DTYPES
from evaluation.model_files import INDEX_FILE
from finetune.base_files import BaseFiles, read_weight, read_weights, weight_shape
from finetune.disk_space import require_space, weights_bytes
from finetune.errors import DataError
from finetune.merging_tokenizer import add_tokenizer
from finetune.peft_weights import EMBEDDING, HEAD, Change, LowRank, PeftFolder, Replaced, Rows

SHARD_BYTES = 2 * 2**30
"""Largest file that is written: two of them are the memory that folding needs, and three times the largest weight."""
_ENDS = frozenset({f"{EMBEDDING}.weight", f"{HEAD}.weight"})

Advance = Callable[[int], None]


def fold_shards(base: BaseFiles, adapter: PeftFolder, out: Path, dtype: str, advance: Advance = lambda _: None) -> None:
    """Write the base with the adapter folded in: weights of the given type, configuration and tokenizer.

    Raises:
        DataError: the adapter does not belong to this base; nothing is written.
    """
    check_fits(base, adapter)
    require_space(out.parent, weights_bytes(base.folder, dtype), "the merge")
    with staged_folder(out) as staging:
        writer = _ShardWriter(staging)
        for name, weight in _folded(base, adapter):
            writer.add(name, weight.to(DTYPES[dtype]))
            advance(1)
        names = writer.close()
        rows = writer.rows
        _write_config(base, staging, dtype, f"{HEAD}.weight" not in names, rows)
        add_tokenizer(base, adapter, staging, rows)


def check_fits(base: BaseFiles, adapter: PeftFolder) -> None:
    """Check every changed module against the base: it is there, and has the shape that the adapter was made for.

    Raises:
        DataError: names the module.
    """
    head = adapter.change(HEAD) if base.tied and HEAD in adapter.modules else None
    if adapter.config.residual and isinstance(head, LowRank):
        what = f"{adapter.config.kind} on the output embedding changes the input embedding as well, which is tied to it"
        raise DataError(what, where=str(adapter.folder), hint="save it as a plain LoRA, as docs/adapters.md says")
    for module in adapter.modules:
        stored = f"{EMBEDDING if module == HEAD and base.tied else module}.weight"
        if stored not in base.files:
            raise DataError(
                f"the adapter changes {module}, which this base does not have",
                where=str(adapter.folder),
                hint="name the base that the adapter was trained on"
                + (f": {adapter.config.base_model_name_or_path}" if adapter.config.base_model_name_or_path else ""),
            )
        change, shape = adapter.change(module), weight_shape(base, stored)
        found = _shape_of(change, shape)
        brings_its_own = isinstance(change, Replaced) or change.own is not None
        resized = brings_its_own and module in (EMBEDDING, HEAD) and found[1] == shape[1]
        if found != shape and not resized:
            raise DataError(
                f"{module} is {shape[0]}×{shape[1]} in this base and {found[0]}×{found[1]} for the adapter",
                where=str(adapter.folder),
                hint="name the base that the adapter was trained on",
            )
    _check_complete(base, adapter)


def _check_complete(base: BaseFiles, adapter: PeftFolder) -> None:
    """Check that every layer that the settings name by its last words has its tensors."""
    missing = [
        module
        for name in sorted(base.files)
        if (module := name.removesuffix(".weight")) not in adapter.parts and adapter.config.adapts(module)
    ]
    if missing:
        raise DataError(
            f"{len(missing)} modules that its settings name have no tensors, first {missing[0]}",
            where=str(adapter.folder),
            hint="the file is not whole: fetch it again",
        )


def _folded(base: BaseFiles, adapter: PeftFolder) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of the result, in the order of the base's files; the two embeddings last."""
    for name, weight in read_weights(base, without=_ENDS):
        module = name.removesuffix(".weight")
        yield name, adapter.change(module).applied_to(weight) if module in adapter.parts else weight
    embedding = read_weight(base, f"{EMBEDDING}.weight")
    head = embedding if base.tied else read_weight(base, f"{HEAD}.weight")
    yield from _ends(base, adapter, embedding, head)


def _ends(base: BaseFiles, adapter: PeftFolder, embedding: Tensor, head: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the input embedding and, where it is another one by now, the output embedding.

    Both are folded by themselves, since peft's adapter on one of two tied weights does not act on the other. The
    exceptions are those that peft ties: trained rows, and everything under `ensure_weight_tying`.
    """
    modules = set(adapter.modules)
    change = adapter.change(EMBEDDING) if EMBEDDING in modules else None
    folded = embedding if change is None else change.applied_to(embedding)
    yield f"{EMBEDDING}.weight", folded
    if stays_tied(base, adapter):
        return
    if isinstance(change, LowRank) and change.own is not None and brings_the_head(base, adapter):
        head = change.own
    result = adapter.change(HEAD).applied_to(head) if HEAD in modules else head
    if result.shape != folded.shape:
        raise DataError(
            f"the adapter's input embedding has {folded.shape[0]} rows and its output embedding {result.shape[0]}",
            where=str(adapter.folder),
            hint="save it with save_embedding_layers=True, so that both are in it",
        )
    if not base.tied or not torch.equal(result.float(), folded.float()):
        yield f"{HEAD}.weight", result


def stays_tied(base: BaseFiles, adapter: PeftFolder) -> bool:
    """Say whether input and output embedding are one weight before and after."""
    config, ends = adapter.config, {EMBEDDING, HEAD}
    tied_by_peft = config.ensure_weight_tying or config.trainable_token_indices is not None
    return base.tied and (tied_by_peft or not ends & set(adapter.modules))


def brings_the_head(base: BaseFiles, adapter: PeftFolder) -> bool:
    """Say whether an adapter of the input embedding brings along the one weight that both embeddings were."""
    return base.tied and {"base_layer.weight", "lora_embedding_A"} <= set(adapter.parts.get(EMBEDDING, ()))


def _shape_of(change: Change, otherwise: tuple[int, int]) -> tuple[int, int]:
    match change:
        case LowRank():
            return change.shape
        case Replaced(weight) | Rows(own=Tensor() as weight):
            return (weight.shape[0], weight.shape[1]) if weight.ndim == 2 else (weight.shape[0], 1)
        case _:
            return otherwise


class _ShardWriter:
    """Collects weights until a shard is full, writes it, and at last names the shards as transformers does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []
        self._total = 0
        self.rows = 0
        """Rows of the input embedding."""

    def add(self, name: str, weight: Tensor) -> None:
        size = weight.numel() * weight.element_size()
        if self._pending and self._bytes + size > SHARD_BYTES:
            self._flush()
        self._pending[name] = weight.contiguous()
        self._bytes += size
        self._total += size
        if name == f"{EMBEDDING}.weight":
            self.rows = weight.shape[0]

    def close(self) -> list[str]:
        """Write what is left, name the files, and return the names of all weights."""
        self._flush()
        count = len(self._shards)
        names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        if count == 1:
            names = ["model.safetensors"]
        for number, name in enumerate(names):
            self._part(number).rename(self._folder / name)
        where = {weight: name for name, shard in zip(names, self._shards, strict=True) for weight in shard}
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(where.items()))}
            (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return list(where)

    def _flush(self) -> None:
        if self._pending:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._pending))
            self._pending, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"


def _write_config(base: BaseFiles, folder: Path, dtype: str, tied: bool, rows: int) -> None:
    config = {key: value for key, value in base.config.items() if key not in ("_name_or_path", "torch_dtype")}
    config |= {"dtype": dtype, "tie_word_embeddings": tied, "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
