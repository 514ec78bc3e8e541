"""Linear layers of one input with their low-rank adapters, as products with a backward pass written out.

y = x Wᵀ + s (x Aᵀ) Bᵀ, where W is frozen, dense or stored in NF4, and A and B are trained in fp32 and computed in the
type of x (https://arxiv.org/abs/2106.09685). Shapes: T tokens, I inputs, O outputs, R the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Factors:
    """The adapter of one layer in the type of the computation."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float


Adapters = tuple[Factors | None, ...]
"""Of layers that share an input, in their order."""


def build_linear(module: nn.Module, adapter: str) -> Linear:
    """Take the frozen layer and the named adapter out of a layer of peft's or of a plain one."""
    if not isinstance(module, LoraLayer):
        return Linear(cast(nn.Linear, module), None, None, 1.0)
    parts: Any = module
    frozen = cast(nn.Linear, parts.get_base_layer())
    return Linear(frozen, parts.lora_A[adapter].weight, parts.lora_B[adapter].weight, parts.scaling[adapter])


def trained(linears: Sequence[Linear]) -> Iterator[nn.Parameter | None]:
    """Yield A and B of each layer, or two times none."""
    for linear in linears:
        yield from (linear.a_RI, linear.b_OR)


def in_type(linears: Sequence[Linear], dtype: torch.dtype) -> Adapters:
    """Copy the adapters into the type of the computation."""
    return tuple(
        None
        if one.a_RI is None or one.b_OR is None
        else Factors(one.a_RI.detach().to(dtype), one.b_OR.detach().to(dtype), one.scaling)
        for one in linears
    )


def project(x_TI: Tensor, linears: Sequence[Linear], adapters: Adapters) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return y (T, O) of each layer, and s x Aᵀ (T, R), which the backward pass needs."""
    outputs: list[Tensor] = []
    lows: list[Tensor | None] = []
    for linear, factors in zip(linears, adapters, strict=True):
        y_TO = x_TI @ frozen_weight(linear.layer, x_TI.dtype).T
        low_TR = None
        if factors is not None:
            low_TR = (x_TI @ factors.a_RI.T).mul_(factors.scaling)
            y_TO.addmm_(low_TR, factors.b_OR.T)
        outputs.append(y_TO)
        lows.append(low_TR)
    return outputs, lows


def project_backward(
    slopes: Sequence[Tensor], x_TI: Tensor, lows: Sequence[Tensor | None], linears: Sequence[Linear], adapters: Adapters
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the gradient of x (T, I), and in fp32 those of A and B of each layer."""
    dx_TI: Tensor | None = None
    gradients: list[Tensor | None] = []
    for slope_TO, low_TR, linear, factors in zip(slopes, lows, linears, adapters, strict=True):
        weight_OI = frozen_weight(linear.layer, slope_TO.dtype)
        dx_TI = slope_TO @ weight_OI if dx_TI is None else dx_TI.addmm_(slope_TO, weight_OI)
        if factors is None or low_TR is None:
            gradients += [None, None]
            continue
        dlow_TR = (slope_TO @ factors.b_OR).mul_(factors.scaling)
        dx_TI.addmm_(dlow_TR, factors.a_RI)
        gradients += [(dlow_TR.T @ x_TI).float(), (slope_TO.T @ low_TR).float()]
    assert dx_TI is not None
    return dx_TI, gradients
