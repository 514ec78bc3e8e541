"""What an adapter does to each weight of its base, worked out in fp32 from its file, one module at a time.

This is the second way to fold an adapter, beside peft's own: it needs no model in memory, only the weight at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evaluation.adapter_files import check_adapter_config, check_tensor
from finetune.errors import DataError
from finetune.peft_config import PeftConfig, load_peft_config

ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True)
class LowRank:
    """W + s·B·A, and for DoRA its rows brought to trained lengths (https://arxiv.org/abs/2402.09353, eq. 5)."""

    down: Tensor
    """A, shape (rank, in)."""
    up: Tensor
    """B, shape (out, rank)."""
    scaling: float
    magnitude: Tensor | None = None
    """Trained length of each row, or of each column of an embedding: shape (out,)."""
    residual: str | None = None
    """`pissa` or `olora`: what was subtracted from the base before training started."""
    is_embedding: bool = False
    own: Tensor | None = None
    """The weight that the factors belong to, where the adapter brings it along: an embedding with more rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight that this belongs to."""
        out, width = self.up.shape[0], self.down.shape[1]
        return (width, out) if self.is_embedding else (out, width)

    def product(self, rows: slice = slice(None)) -> Tensor:
        """Return s·B·A in the shape of the weight, or some of its rows."""
        if self.is_embedding:
            return self.scaling * (self.down[:, rows].float().T @ self.up.float().T)
        return self.scaling * (self.up[rows].float() @ self.down.float())

    def applied_to(self, weight: Tensor) -> Tensor:
        """Return the changed weight, in fp32."""
        start = _without_start((weight if self.own is None else self.own).float(), self)
        changed = self.product().add_(start)
        if self.magnitude is None:
            return changed
        lengths = changed.norm(dim=0 if self.is_embedding else 1)
        scale = self.magnitude.float() / lengths
        return changed.mul_(scale if self.is_embedding else scale[:, None])


@dataclass(frozen=True)
class Replaced:
    """Another weight in the place of the base's: a module that was trained whole, or a resized embedding."""

    weight: Tensor

    def applied_to(self, _: Tensor) -> Tensor:
        """Return the other weight, in fp32."""
        return self.weight.float()


@dataclass(frozen=True)
class Rows:
    """Single rows of an embedding that were trained."""

    indices: tuple[int, ...]
    rows: Tensor
    own: Tensor | None = None
    """The embedding that the rows belong to, where the adapter brings it along."""

    def applied_to(self, weight: Tensor) -> Tensor:
        """Return the embedding with the trained rows, in fp32."""
        return (
            (weight if self.own is None else self.own)
            .float()
            .index_copy(0, torch.tensor(self.indices, dtype=torch.long), self.rows.float())
        )


Change = LowRank | Replaced | Rows
"""Something that is done to one weight."""


@dataclass(frozen=True)
class PeftFolder:
    """An adapter on this disk: its settings, and which tensors belong to which module."""

    folder: Path
    config: PeftConfig
    parts: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Module of the base → names of its tensors behind the module's name, sorted."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that are changed, sorted."""
        return tuple(sorted(self.parts))

    def change(self, module: str) -> Change:
        """Read what is done to a module.

        Raises:
            DataError: its tensors do not fit each other, or are not finite.
        """
        tensors = self._read(module)
        match self.parts[module]:
            case ("weight",) | ("base_layer.weight",) | ("token_adapter.base_layer.weight",):
                return Replaced(*tensors.values())
            case (*_, "token_adapter.trainable_tokens_delta"):
                rows = tensors["token_adapter.trainable_tokens_delta"]
                return Rows(self._token_indices(module), rows, tensors.get("token_adapter.base_layer.weight"))
            case _:
                return self._low_rank(module, tensors)

    def _low_rank(self, module: str, tensors: Mapping[str, Tensor]) -> LowRank:
        is_embedding = "lora_embedding_A" in tensors
        ends = ("embedding_A", "embedding_B") if is_embedding else ("A.weight", "B.weight")
        down, up = (tensors[f"lora_{end}"] for end in ends)
        if down.ndim != 2 or up.ndim != 2:
            raise DataError(
                f"{module}: its factors are empty or no matrices",
                where=str(self.folder / ADAPTER_FILE),
                hint="gather the weights before saving, where training split them (DeepSpeed ZeRO-3)",
            )
        rank = self.config.rank(module)
        if down.shape[0] != rank or up.shape[1] != rank:
            raise DataError(
                f"{module}: rank {rank} by the settings, {down.shape[0]} and {up.shape[1]} by the tensors",
                where=str(self.folder / ADAPTER_FILE),
            )
        magnitude, own = tensors.get("lora_magnitude_vector"), tensors.get("base_layer.weight")
        # peft starts embeddings as plain LoRA; and a weight that is brought along is what the start left already.
        residual = None if is_embedding or own is not None else self.config.residual
        if self.config.use_dora != (magnitude is not None):
            raise DataError(f"{module}: use_dora and the tensors disagree", where=str(self.folder / ADAPTER_FILE))
        return LowRank(down, up, self.config.scaling(module), magnitude, residual, is_embedding, own)

    def _token_indices(self, module: str) -> tuple[int, ...]:
        indices = self.config.trainable_token_indices
        if isinstance(indices, dict):
            return next((found for name, found in indices.items() if module.endswith(name)), ())
        return indices or ()

    def _read(self, module: str) -> dict[str, Tensor]:
        with safe_open(self.folder / ADAPTER_FILE, framework="pt") as file:
            tensors = {part: file.get_tensor(f"{_PREFIX}{module}.{part}") for part in self.parts[module]}
        for part, tensor in tensors.items():
            check_tensor(f"{module}.{part}", tensor, str(self.folder / ADAPTER_FILE))
        return tensors


_KINDS = (
    {"weight"},
    {"base_layer.weight"},
    {"token_adapter.trainable_tokens_delta"},
    {"token_adapter.base_layer.weight"},
    {"token_adapter.base_layer.weight", "token_adapter.trainable_tokens_delta"},
    {"lora_A.weight", "lora_B.weight"},
    {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"},
    {"lora_embedding_A", "lora_embedding_B"},
    {"lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"},
    {"base_layer.weight", "lora_A.weight", "lora_B.weight"},
    {"base_layer.weight", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"},
    {"base_layer.weight", "lora_embedding_A", "lora_embedding_B"},
    {"base_layer.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"},
)
"""Which tensors a module may have; peft saves a resized or targeted embedding with the base's weight."""
_TWICE = {"original_module.weight", "modules_to_save.weight"}
"""What peft writes beside a module's new weight when it saves embeddings: the old one, and the new one once more."""


def open_peft_folder(folder: Path) -> PeftFolder:
    """Look at an adapter folder without reading its weights.

    Raises:
        DataError: it is not one that can be folded, and why.
    """
    named = str(folder)
    config = load_peft_config(folder, named)
    check_adapter_config(folder)
    file = folder / ADAPTER_FILE
    if not file.exists():
        raise DataError(f"no {ADAPTER_FILE} in this folder", where=named, hint="pickled weights are not read")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except SafetensorError as error:
        raise DataError(f"the weights cannot be read: {error}", where=str(file)) from error
    return PeftFolder(folder, config, dict(_by_module(names, str(file))))


def _by_module(names: list[str], where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    found: dict[str, list[str]] = {}
    endings = sorted({*_TWICE, *(ending for kind in _KINDS for ending in kind)}, key=len, reverse=True)
    for name in names:
        ending = next((ending for ending in endings if name.endswith(f".{ending}")), None)
        if ending is None or not name.startswith(_PREFIX) or "lora_" in name.removesuffix(ending):
            raise DataError(f"the adapter has a tensor that is not known here: {name!r}", where=where)
        found.setdefault(name.removeprefix(_PREFIX).removesuffix(f".{ending}"), []).append(ending)
    if not found:
        raise DataError("the adapter has no tensors", where=where)
    for module, parts in found.items():
        needed = set(parts) - _TWICE if "weight" in parts else set(parts)
        if needed not in _KINDS:
            raise DataError(f"{module} has {', '.join(sorted(parts))}, which make no whole adapter", where=where)
        yield module, tuple(sorted(needed))


def _without_start(weight: Tensor, change: LowRank) -> Tensor:
    """Return the base as PiSSA or OLoRA left it: without what their factors started from.

    PiSSA takes the `rank` largest singular values (https://arxiv.org/abs/2404.02948, section 3), OLoRA the first
    columns of a QR decomposition (https://arxiv.org/abs/2406.01775, section 3).
    """
    if change.residual is None:
        return weight
    rank = change.down.shape[0]
    if change.residual == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        start: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    else:
        basis, triangle = torch.linalg.qr(weight)
        start = change.scaling * (basis[:, :rank] @ triangle[:rank])
    return weight - start
