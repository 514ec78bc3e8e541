"""Several adapters of one base become one: on the weight changes themselves, never on their factors.

B·A of mixed factors is not the mix of the products: peft's `linear`, `ties` and `dare` were off by as much as the
change itself (docs/log.md). Here the changes are mixed in fp32, one module at a time, and brought back to a rank by
singular values, with the share of their energy that the rank keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetune.errors import DataError
from finetune.peft_weights import LowRank, PeftFolder

Way = Literal["cat", "sum", "ties", "dare"]

OVERSAMPLED = 16
"""Columns beyond the rank in the randomized SVD (https://arxiv.org/abs/0909.4061, section 4.2, names 5 to 10)."""
POWER_ITERATIONS = 4


@dataclass(frozen=True)
class Mix:
    """How adapters are put together."""

    way: Way
    weights: tuple[float, ...]
    rank: int | None = None
    """Rank of the result; for `cat` the sum of the ranks, which is exact."""
    density: float = 0.5
    """Share of the entries that TIES keeps by size, or DARE by chance."""
    seed: int = 0


@dataclass(frozen=True)
class Factors:
    """One module of the result, with scaling 1."""

    down: Tensor
    up: Tensor
    energy: float
    """Share of the squared entries of the mixed change that the factors keep, 0 to 1."""


def check_combinable(adapters: Sequence[PeftFolder]) -> None:
    """Check that the changes of all adapters are plain products on the same base.

    Raises:
        DataError: names the adapter and why not.
    """
    shapes: dict[str, tuple[int, int]] = {}
    bases = {(one.config.base_model_name_or_path, one.config.revision) for one in adapters}
    if len(bases) > 1:
        named = ", ".join(sorted(f"{name or 'none named'}@{revision or 'any'}" for name, revision in bases))
        raise DataError(f"the adapters belong to different bases: {named}", where=str(adapters[1].folder))
    for one in adapters:
        why = "DoRA" if one.config.use_dora else one.config.residual
        if why:
            hint = "merge each into the base and take `finetune adapter extract` of the results"
            raise DataError(f"{why} changes a weight by more than a product", where=str(one.folder), hint=hint)
        for module in one.modules:
            change = one.change(module)
            if not isinstance(change, LowRank) or change.own is not None:
                raise DataError(f"{module} was trained or saved whole, and such are not mixed", where=str(one.folder))
            if shapes.setdefault(module, change.shape) != change.shape:
                raise DataError(f"{module} has another shape than in the others", where=str(one.folder))


def combine(adapters: Sequence[PeftFolder], module: str, mix: Mix) -> Factors:
    """Mix what the adapters do to one module; those that leave it alone count as zero."""
    changes = [
        (weight, change)
        for one, weight in zip(adapters, mix.weights, strict=True)
        if module in one.parts and isinstance(change := one.change(module), LowRank)
    ]
    if mix.way in ("cat", "sum"):
        down = torch.cat([change.down.float() for _, change in changes])
        up = torch.cat([weight * change.scaling * change.up.float() for weight, change in changes], dim=1)
        return Factors(down, up, 1.0) if mix.way == "cat" else _reduced(down, up, mix.rank or _largest(changes))
    deltas = torch.stack([change.up.float() @ change.down.float() * change.scaling for _, change in changes])
    weights = torch.tensor([weight for weight, _ in changes])
    mixed = _MIXERS[mix.way](deltas, weights, mix.density, _generator(mix.seed, module))
    return factorize(mixed, mix.rank or _largest(changes), _generator(mix.seed, module))


def factorize(delta: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Return the best factors of a rank for a change of shape (out, in), by randomized SVD.

    Exact where the change has no higher rank; `energy` says what is lost.
    """
    most = min(delta.shape)
    rank = min(rank, most)
    if rank + OVERSAMPLED >= most:
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
    else:
        probe = torch.randn(delta.shape[1], rank + OVERSAMPLED, generator=generator)
        basis = torch.linalg.qr(delta @ probe).Q
        for _ in range(POWER_ITERATIONS):
            basis = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ basis).Q).Q
        small, values, right = torch.linalg.svd(basis.T @ delta, full_matrices=False)
        left = basis @ small
    root = values[:rank].sqrt()
    total = float(delta.double().square().sum())
    kept = float(values[:rank].double().square().sum())
    return Factors(root[:, None] * right[:rank], left[:, :rank] * root, min(1.0, kept / total) if total else 1.0)


def _reduced(down: Tensor, up: Tensor, rank: int) -> Factors:
    """Return the best factors of a rank for up·down without forming the product: by the SVD of two small triangles."""
    left, small_up = torch.linalg.qr(up)
    right, small_down = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small_up @ small_down.T)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    total = float(values.double().square().sum())
    kept = float(values[:rank].double().square().sum())
    new_down, new_up = root[:, None] * (v[:rank] @ right.T), (left @ u[:, :rank]) * root
    return Factors(new_down, new_up, kept / total if total else 1.0)


def _ties(deltas: Tensor, weights: Tensor, density: float, _: torch.Generator) -> Tensor:
    """Trim, elect a sign by weight, and average those that agree: https://arxiv.org/abs/2306.01708, algorithm 1."""
    kept = torch.stack([_trimmed(delta, density) for delta in deltas]) * weights[:, None, None]
    sign = kept.sum(0).sign()
    agree = (kept.sign() == sign) & (kept != 0)
    share = (agree * weights.abs()[:, None, None]).sum(0)
    return torch.where(share > 0, (kept * agree).sum(0) / share.clamp(min=1e-12), torch.zeros(()))


def _dare(deltas: Tensor, weights: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Drop entries by chance and scale up what is left: https://arxiv.org/abs/2311.03099, section 3.1."""
    mask = torch.rand(deltas.shape, generator=generator) < density
    return (deltas * mask / density * weights[:, None, None]).sum(0)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    count = max(1, round(density * delta.numel()))
    threshold = delta.abs().flatten().kthvalue(delta.numel() - count + 1).values
    return torch.where(delta.abs() >= threshold, delta, torch.zeros(()))


_MIXERS: dict[str, Callable[[Tensor, Tensor, float, torch.Generator], Tensor]] = {"ties": _ties, "dare": _dare}


def _largest(changes: Sequence[tuple[float, LowRank]]) -> int:
    return max(change.down.shape[0] for _, change in changes)


def _generator(seed: int, module: str) -> torch.Generator:
    """Return a generator for one module, so that the result does not depend on the order of the modules."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{module}".encode()).digest()[:8])
    return torch.Generator().manual_seed(number % 2**63)
