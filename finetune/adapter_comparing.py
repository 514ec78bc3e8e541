"""How large an adapter's changes are and how alike two adapters', worked out from the factors alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from finetune.errors import DataError
from finetune.peft_weights import LowRank, PeftFolder, Rows


def describe_change(adapter: PeftFolder) -> Iterator[tuple[str, str, str, str]]:
    """Yield for each kind of layer: its name, how many there are, their shape, the mean length of their change."""
    kinds: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for module in adapter.modules:
        change = adapter.change(module)
        name = module.rsplit(".", 1)[-1]
        if isinstance(change, LowRank):
            shape = f"{change.shape[0]}×{change.shape[1]}"
            kinds[name, shape].append(math.sqrt(inner(change, change)))
        else:
            kinds[name, "rows" if isinstance(change, Rows) else "whole"].append(None)
    for (name, shape), lengths in kinds.items():
        known = [length for length in lengths if length is not None]
        yield name, str(len(lengths)), shape, f"{sum(known) / len(known):.3g}" if known else "–"


def likeness(one: PeftFolder, other: PeftFolder, module: str | None) -> tuple[str, str, str]:
    """Return the lengths of two adapters' changes and the cosine between them, of one module or over all."""
    modules = [module] if module else sorted({*one.modules, *other.modules})
    first, second, both = (sum(parts) for parts in zip(*(_inner_products(one, other, m) for m in modules), strict=True))
    cosine = f"{both / math.sqrt(first * second):+.3f}" if first * second > 0 else "–"
    return f"{math.sqrt(first):.3g}", f"{math.sqrt(second):.3g}", cosine


def inner(one: LowRank, other: LowRank) -> float:
    """Return ⟨s·B·A, t·D·C⟩ without forming a product: tr((BᵀD)(CAᵀ))."""
    assert one.shape == other.shape
    up = one.up.double().T @ other.up.double()
    down = one.down.double() @ other.down.double().T
    return float((up * down).sum()) * one.scaling * other.scaling


def _inner_products(one: PeftFolder, other: PeftFolder, module: str) -> tuple[float, float, float]:
    changes = [adapter.change(module) if module in adapter.parts else None for adapter in (one, other)]
    first, second = (change if isinstance(change, LowRank) else None for change in changes)
    if first and second and first.shape != second.shape:
        raise DataError(f"{module} has another shape than in {one.folder}", where=str(other.folder))
    return (
        inner(first, first) if first else 0.0,
        inner(second, second) if second else 0.0,
        inner(first, second) if first and second else 0.0,
    )
