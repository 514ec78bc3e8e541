"""Linear layers of one input with their low-rank adapters, as one product with a backward pass written out.

y = x Wᵀ + s (x Aᵀ) Bᵀ = [x, x Aᵀ] [W, s B]ᵀ, where W is frozen, dense or stored in NF4, and A and B are trained in fp32
and computed in the type of x (https://arxiv.org/abs/2106.09685). The layers lie one below the other in [W, s B], so
that q, k and v are one product, and s B beside W, so that the adapter is no second pass over y.
Shapes: T tokens, I inputs, O outputs of all layers together, S their ranks together, W = I + S, or more (`Stack.room`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from evaluation.model import is_dense
from finetune.elementwise import TILES_MULTIPLE, Elementwise, Tiles
from finetune.matrix_product import product

BEYOND = 64
"""Zeros behind a weight whose rows are parts of wider ones, since oneDNN reads past the end of the last."""


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
class Stack:
    """Layers that have the same input."""

    linears: tuple[Linear, ...]
    elementwise: Elementwise
    tiles: Tiles | None
    """Compute the products of the adapters, where their sizes fit."""
    kept_OW: Tensor | None
    """W, with room for s B beside it, where W is dense; the frozen layers' own weights are views of it."""

    @functools.cached_property
    def inputs(self) -> int:
        """Count the inputs."""
        return self.linears[0].layer.in_features

    @functools.cached_property
    def ranks(self) -> int:
        """Count the ranks of all adapters."""
        return sum(linear.rank for linear in self.linears)

    @functools.cached_property
    def outputs(self) -> int:
        """Count the outputs of all layers."""
        return sum(linear.layer.out_features for linear in self.linears)

    @functools.cached_property
    def room(self) -> int:
        """Count the numbers behind the inputs: the ranks, and with tiles zeros up to the next line of a cache."""
        return self.ranks + (-self.ranks % TILES_MULTIPLE if self.tiles is not None else 0)

    @functools.cached_property
    def width(self) -> int:
        """Count the numbers of a row of [W, s B]."""
        return self.inputs + self.room

    @functools.cached_property
    def places(self) -> tuple[tuple[Linear, slice, slice], ...]:
        """Return each layer, its outputs, and the place of its adapter among the ranks."""
        outputs = pairwise(accumulate((one.layer.out_features for one in self.linears), initial=0))
        ranks = pairwise(accumulate((one.rank for one in self.linears), initial=0))
        found = zip(self.linears, outputs, ranks, strict=True)
        return tuple((linear, slice(*rows), slice(*columns)) for linear, rows, columns in found)


@dataclass(frozen=True)
class Factors:
    """The adapters of a stack as they were at one moment, in the type of the computation."""

    a_SW: Tensor
    """One below the other, and zeros beside them, where x has room for x Aᵀ."""
    weight_OW: Tensor | None
    """[W, s B] of a dense stack; of one in NF4 it is made at each use, and kept by nobody."""


def build_linear(module: nn.Module, adapter: str) -> Linear:
    """Take the frozen layer and the named adapter out of a layer of peft's or of a plain one."""
    if not isinstance(module, LoraLayer):
        return Linear(cast(nn.Linear, module), None, None, 1.0)
    parts: Any = module
    frozen = cast(nn.Linear, parts.get_base_layer())
    return Linear(frozen, parts.lora_A[adapter].weight, parts.lora_B[adapter].weight, parts.scaling[adapter])


def build_stack(linears: Sequence[Linear], elementwise: Elementwise, dtype: torch.dtype) -> Stack:
    """Put layers together that compute in a type; dense weights move to where s B has room beside them."""
    tiles = elementwise.tiles if dtype == torch.bfloat16 and all(map(_fits_tiles, linears)) else None
    stack = Stack(tuple(linears), elementwise, tiles, None)
    if not all(is_dense(linear.layer) for linear in linears):
        return stack
    numbers = stack.outputs * stack.width
    kept_OW = linears[0].layer.weight.new_zeros(numbers + BEYOND)[:numbers].view(stack.outputs, stack.width)
    for linear, rows, _ in stack.places:
        kept_OW[rows, : stack.inputs] = linear.layer.weight.data
        linear.layer.weight.data = kept_OW[rows, : stack.inputs]
    return replace(stack, kept_OW=kept_OW)


def _fits_tiles(linear: Linear) -> bool:
    sizes = (linear.layer.in_features, linear.layer.out_features)
    return linear.rank > 0 and linear.rank % 2 == 0 and all(size % TILES_MULTIPLE == 0 for size in sizes)


def build_factors(stack: Stack, dtype: torch.dtype) -> Factors:
    """Copy the adapters as they are now into the type of the computation."""
    a_SW = torch.zeros(stack.ranks, stack.width, dtype=dtype)
    for linear, _, columns in stack.places:
        if linear.a_RI is not None:
            a_SW[columns, : stack.inputs] = linear.a_RI.detach()
    if stack.kept_OW is not None:
        _write_adapters(stack, stack.kept_OW)
    return Factors(a_SW, stack.kept_OW)


def project(x_TW: Tensor, stack: Stack, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return y (T, O), and x Aᵀ (T, S), which the backward pass needs; `x_TW` has room for it beside x, zero so far.

    oneDNN reads past the end of a short row and multiplies what it finds with 0, which not a number survives; so no
    factor of a product is a part of wider rows, unless it fills oneDNN's blocks (matrix_product.py).
    """
    if stack.tiles is not None:
        low_TS = stack.tiles.project_low(x_TW, factors.a_SW, stack.inputs)
    else:
        low_TS = x_TW @ factors.a_SW.T
        x_TW[:, stack.inputs :][:, : stack.ranks] = low_TS
    return product(x_TW, _weight(stack, factors).T), low_TS


def project_backward(slope_TO: Tensor, stack: Stack, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (T, I) and of x Aᵀ (T, S)."""
    slope_TW = product(slope_TO, _weight(stack, factors))
    if not stack.ranks:
        return slope_TW, slope_TW.new_empty(len(slope_TW), 0)
    if stack.tiles is not None:
        low_TS = slope_TW[:, stack.inputs :][:, : stack.ranks]
        return stack.tiles.add_low_rank(slope_TW, factors.a_SW, stack.inputs), low_TS
    dlow_TS = slope_TW[:, stack.inputs :].contiguous()
    return torch.addmm(slope_TW[:, : stack.inputs], dlow_TS, factors.a_SW[:, : stack.inputs]), dlow_TS


def adapter_gradients(
    slope_TO: Tensor, dlow_TS: Tensor, x_TI: Tensor, low_TS: Tensor, stack: Stack
) -> list[Tensor | None]:
    """Return the gradients of A and B of each layer, in fp32."""
    if not stack.ranks:
        return [None] * (2 * len(stack.linears))
    if (tiles := stack.tiles) is not None:
        da_SI = tiles.factor_gradient(dlow_TS, x_TI, 1.0, across=False)
        both = [
            (da_SI[columns], tiles.factor_gradient(low_TS[:, columns], slope_TO[:, rows], linear.scaling, across=True))
            for linear, rows, columns in stack.places
        ]
        return [gradient for pair in both for gradient in pair]
    da_SI, db_SO = (dlow_TS.T @ x_TI).float(), low_TS.T @ slope_TO
    gradients: list[Tensor | None] = []
    for linear, rows, columns in stack.places:
        if linear.rank:
            db_OR = db_SO[columns, rows].T.float().mul_(linear.scaling)
            gradients += (da_SI[columns], db_OR.contiguous())
        else:
            gradients += (None, None)
    return gradients


def _weight(stack: Stack, factors: Factors) -> Tensor:
    """Return [W, s B], (O, W)."""
    if factors.weight_OW is not None:
        return factors.weight_OW
    made_OW = factors.a_SW.new_empty(stack.outputs, stack.width)
    made_OW[:, stack.inputs :] = 0
    for linear, rows, _ in stack.places:
        stack.elementwise.unpack(linear.layer, made_OW[rows, : stack.inputs])
    _write_adapters(stack, made_OW)
    return made_OW


def _write_adapters(stack: Stack, weight_OW: Tensor) -> None:
    for linear, rows, columns in stack.places:
        if linear.b_OR is not None:
            weight_OW[rows, stack.inputs :][:, columns] = linear.b_OR.detach() * linear.scaling
