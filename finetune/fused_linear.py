"""Linear layers of one input with their low-rank adapters, as products with a backward pass written out.

y = x Wᵀ + s (x Aᵀ) Bᵀ, where W is frozen, dense or stored in NF4, and A and B are trained in fp32 and computed in the
type of x (https://arxiv.org/abs/2106.09685). The As of layers with the same input are one product.
Shapes: T tokens, I inputs, O outputs, R the rank, S the ranks of all layers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from evaluation.model import frozen_weight


@dataclass(frozen=True)
class Linear:
    """One frozen layer with or without an adapter."""

    layer: nn.Linear
    a_RI: nn.Parameter | None
    b_OR: nn.Parameter | None
    scaling: float

    @property
    def rank(self) -> int:
        """Return the rank of the adapter, 0 where there is none."""
        return 0 if self.a_RI is None else len(self.a_RI)


@dataclass(frozen=True)
class Factors:
    """The adapters of layers that share an input, in the type of the computation."""

    a_SI: Tensor | None
    """One below the other; none where no layer has an adapter."""
    scaled_b: tuple[Tensor | None, ...]
    """s B of each layer, (O, R)."""

    def low(self, low_TS: Tensor | None, linears: Sequence[Linear]) -> list[Tensor | None]:
        """Cut x Aᵀ (T, S) into the part (T, R) of each layer."""
        if low_TS is None:
            return [None] * len(linears)
        parts = low_TS.split([linear.rank for linear in linears], dim=1)
        return [part if linear.rank else None for part, linear in zip(parts, linears, strict=True)]


def build_linear(module: nn.Module, adapter: str) -> Linear:
    """Take the frozen layer and the named adapter out of a layer of peft's or of a plain one."""
    if not isinstance(module, LoraLayer):
        return Linear(cast(nn.Linear, module), None, None, 1.0)
    parts: Any = module
    frozen = cast(nn.Linear, parts.get_base_layer())
    return Linear(frozen, parts.lora_A[adapter].weight, parts.lora_B[adapter].weight, parts.scaling[adapter])


def build_factors(linears: Sequence[Linear], dtype: torch.dtype) -> Factors:
    """Copy the adapters as they are now into the type of the computation."""
    a = [linear.a_RI.detach().to(dtype) for linear in linears if linear.a_RI is not None]
    scaled_b = [
        None if linear.b_OR is None else (linear.b_OR.detach() * linear.scaling).to(dtype) for linear in linears
    ]
    return Factors(torch.cat(a) if a else None, tuple(scaled_b))


def project(x_TI: Tensor, linears: Sequence[Linear], factors: Factors) -> tuple[list[Tensor], Tensor | None]:
    """Return y (T, O) of each layer, and x Aᵀ (T, S), which the backward pass needs."""
    low_TS = None if factors.a_SI is None else x_TI @ factors.a_SI.T
    outputs = []
    for linear, b_OR, low_TR in zip(linears, factors.scaled_b, factors.low(low_TS, linears), strict=True):
        y_TO = x_TI @ frozen_weight(linear.layer, x_TI.dtype).T
        outputs.append(y_TO if low_TR is None or b_OR is None else y_TO.addmm_(low_TR, b_OR.T))
    return outputs, low_TS


def project_backward(
    slopes: Sequence[Tensor], x_TI: Tensor, low_TS: Tensor | None, linears: Sequence[Linear], factors: Factors
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the gradient of x (T, I), and in fp32 those of A and B of each layer."""
    dx_TI: Tensor | None = None
    dlow, db = [], []
    parts = factors.low(low_TS, linears)
    for slope_TO, low_TR, linear, b_OR in zip(slopes, parts, linears, factors.scaled_b, strict=True):
        weight_OI = frozen_weight(linear.layer, slope_TO.dtype)
        dx_TI = slope_TO @ weight_OI if dx_TI is None else dx_TI.addmm_(slope_TO, weight_OI)
        if b_OR is not None and low_TR is not None:
            dlow.append(slope_TO @ b_OR)
            db.append((slope_TO.T @ low_TR).float().mul_(linear.scaling))
    assert dx_TI is not None
    if factors.a_SI is None:
        return dx_TI, [None] * (2 * len(linears))
    dlow_TS = dlow[0] if len(dlow) == 1 else torch.cat(dlow, 1)
    dx_TI.addmm_(dlow_TS, factors.a_SI)
    da = iter((dlow_TS.T @ x_TI).float().split([linear.rank for linear in linears if linear.rank]))
    left = iter(db)
    return dx_TI, [next(each) if linear.rank else None for linear in linears for each in (da, left)]
