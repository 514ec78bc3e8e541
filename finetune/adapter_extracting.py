"""Makes an adapter from the difference of two models: `base` + adapter ≈ `tuned`, and how much of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation.files import staged_folder
from finetune.adapter_combining import Factors, factorize
from finetune.base_files import BaseFiles, open_base, read_weight
from finetune.errors import DataError
from finetune.merging_tokenizer import copy_tokenizer
from finetune.peft_weights import EMBEDDING, HEAD
from finetune.peft_writing import write_lora


@dataclass(frozen=True)
class Extracted:
    """What became of the difference."""

    energies: dict[str, float]
    """Module → share of its squared change that the factors keep."""
    saved: tuple[str, ...]
    """Modules that are kept whole, since no product of two factors can say their change."""


def extract_adapter(
    base: Path, tuned: Path, out: Path, rank: int, base_name: str, advance: Callable[[int], None] = lambda _: None
) -> Extracted:
    """Write the adapter whose product is nearest to what was changed, module by module, in fp32.

    Embeddings, the head and the norms are kept whole where they differ.

    Raises:
        DataError: the two are not models of one shape, or are equal.
    """
    before, after = open_base(base), open_base(tuned)
    _check_alike(before, after)
    factors: dict[str, Factors] = {}
    saved: dict[str, Tensor] = {}
    for name in sorted({*after.files, f"{HEAD}.weight"}):
        new, old = _read(after, name), _read(before, name)
        advance(1)
        if torch.equal(new, old):
            continue
        module = name.removesuffix(".weight")
        if module == name or new.shape != old.shape:
            what = "changed, and an adapter has no room for a bias" if module == name else "has another shape"
            raise DataError(f"{name} {what}", where=str(tuned))
        if new.ndim == 2 and module.endswith("_proj"):
            factors[module] = factorize(new - old, rank, torch.Generator().manual_seed(0))
        else:
            saved[module] = new
    if not factors and not saved:
        raise DataError("the two models have the same weights: there is nothing to extract", where=str(tuned))
    if not factors:  # peft wants one at least
        first = next(name for name in sorted(before.files) if name.endswith("_proj.weight"))
        out_features, in_features = read_weight(before, first).shape
        zero = Factors(torch.zeros(1, in_features), torch.zeros(out_features, 1), 1.0)
        factors[first.removesuffix(".weight")] = zero
    with staged_folder(out) as staging:
        write_lora(staging, factors, saved, (base_name, None))
        copy_tokenizer(tuned, staging)
    return Extracted({module: one.energy for module, one in factors.items()}, tuple(sorted(saved)))


def _read(base: BaseFiles, name: str) -> Tensor:
    stored = name if name in base.files else f"{EMBEDDING}.weight"  # the head of a tied model
    return read_weight(base, stored).float()


def _check_alike(before: BaseFiles, after: BaseFiles) -> None:
    odd = sorted((set(before.files) ^ set(after.files)) - {f"{HEAD}.weight"})
    if odd:
        raise DataError(f"only one of the two models has {odd[0]}", where=str(after.folder))
