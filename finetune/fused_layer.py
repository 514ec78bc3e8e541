"""A whole decoder layer of the LLaMA family as one function of autograd: it keeps little, and calls little.

The formulae are transformers' own (models/llama/modeling_llama.py): root-mean-square norm, rotary positions, grouped
attention, SwiGLU. What is cheap to compute anew in the backward pass is not kept. Shapes: T tokens, D numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.fused_attention import Attended, Group, Heads, attend, attend_backward
from finetune.fused_linear import Factors, Linear, build_factors, project, project_backward


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm; its weight is frozen."""

    weight_D: Tensor
    epsilon: float

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed tokens, and what each was multiplied with, (T, 1) in fp32."""
        size_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        scale_T1 = size_T1.square_().div_(x_TD.shape[1]).add_(self.epsilon).rsqrt_()
        return self.weighed(unit(x_TD, scale_T1), x_TD.dtype), scale_T1

    def weighed(self, unit_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the normed tokens, of the size that they were trained with."""
        return unit_TD * self.weight_D if dtype == torch.float32 else unit_TD.to(dtype).mul_(self.weight_D)

    def backward(self, slope_TD: Tensor, unit_TD: Tensor, scale_T1: Tensor) -> Tensor:
        """Return the gradient of the tokens, in fp32."""
        slope = (slope_TD * self.weight_D).float()
        along_T1 = torch.linalg.vecdot(slope, unit_TD).div_(-unit_TD.shape[1])[:, None]
        return slope.addcmul_(unit_TD, along_T1).mul_(scale_T1)


def unit(x_TD: Tensor, scale_T1: Tensor) -> Tensor:
    """Return the tokens at a mean square of 1, in fp32."""
    return x_TD * scale_T1 if x_TD.dtype == torch.float32 else x_TD.float().mul_(scale_T1)


@dataclass(frozen=True)
class Layer:
    """The parts of a decoder layer."""

    input_norm: Norm
    inputs: tuple[Linear, Linear, Linear]
    """q, k, v"""
    output: Linear
    mlp_norm: Norm
    gates: tuple[Linear, Linear]
    """gate, up"""
    down: Linear
    heads: Heads

    def trained(self) -> list[nn.Parameter | None]:
        """Return A and B of all seven projections, in their order."""
        linears = (*self.inputs, self.output, *self.gates, self.down)
        return [factor for linear in linears for factor in (linear.a_RI, linear.b_OR)]

    def adapters(self, dtype: torch.dtype) -> Adapters:
        """Copy the adapters as they are now into the type of the computation."""
        groups = (self.inputs, (self.output,), self.gates, (self.down,))
        return Adapters(*[build_factors(linears, dtype) for linears in groups])


@dataclass(frozen=True)
class Adapters:
    """Those of a layer, by input."""

    inputs: Factors
    output: Factors
    gates: Factors
    down: Factors


@dataclass(frozen=True)
class Rotation:
    """Turns the heads of each token by its position (https://arxiv.org/abs/2104.09864)."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    """Negative in the first half of each head."""

    def forward(self, x_TN: Tensor) -> Tensor:
        """Turn queries or keys."""
        return self._turned(x_TN, 1)

    def backward(self, slope_TN: Tensor) -> Tensor:
        """Turn their gradients the other way."""
        return self._turned(slope_TN, -1)

    def _turned(self, x_TN: Tensor, way: int) -> Tensor:
        x = x_TN.view(len(x_TN), -1, self.cos_T1E.shape[-1])
        return (x * self.cos_T1E).addcmul_(x.roll(x.shape[-1] // 2, -1), self.sin_T1E, value=way).view_as(x_TN)


@dataclass(frozen=True)
class Row:
    """Where the documents of a row lie, and how each token is turned."""

    groups: Sequence[Group]
    queries: Rotation
    """Scales them as well, by 1 / √E."""
    keys: Rotation


@dataclass(frozen=True)
class Kept:
    """What the backward pass does not compute anew."""

    input_scale: Tensor
    input_low: Tensor | None
    attended: list[Attended]
    heard_TN: Tensor
    output_low: Tensor | None
    middle_TD: Tensor
    middle_scale: Tensor
    gate_TF: Tensor
    up_TF: Tensor
    gate_low: Tensor | None
    down_low: Tensor | None


def compute(layer: Layer, adapters: Adapters, row: Row, x_TD: Tensor, *, recompute: bool) -> Tensor:
    """Put a row of documents through a layer; with `recompute` nothing but its input is kept for the backward pass."""
    done = _Computed.apply(x_TD, layer, adapters, row, recompute, *layer.trained())  # type: ignore[no-untyped-call]
    return cast(Tensor, done)


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, layer: Layer, adapters: Adapters, row: Row, recompute: bool, *_trained: Tensor | None
    ) -> Tensor:
        y_TD, kept = _forward(layer, adapters, row, x_TD)
        ctx.save_for_backward(x_TD)
        ctx.layer, ctx.adapters, ctx.row, ctx.kept = layer, adapters, row, None if recompute else kept
        return y_TD

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,) = ctx.saved_tensors
        kept = ctx.kept or _forward(ctx.layer, ctx.adapters, ctx.row, x_TD)[1]
        ctx.kept = None
        dx_TD, gradients = _backward(ctx.layer, ctx.adapters, ctx.row, x_TD, kept, slopes[0].contiguous())
        return dx_TD, None, None, None, None, *gradients


def _forward(layer: Layer, adapters: Adapters, row: Row, x_TD: Tensor) -> tuple[Tensor, Kept]:
    normed_TD, input_scale = layer.input_norm.forward(x_TD)
    (q, k, v), input_low = project(normed_TD, layer.inputs, adapters.inputs)
    heard_TN, attended = attend(row.queries.forward(q), row.keys.forward(k), v, row.groups, layer.heads)
    (said_TD,), output_low = project(heard_TN, (layer.output,), adapters.output)
    middle_TD = said_TD.add_(x_TD)
    normed_TD, middle_scale = layer.mlp_norm.forward(middle_TD)
    (gate, up), gate_low = project(normed_TD, layer.gates, adapters.gates)
    (y_TD,), down_low = project(functional.silu(gate).mul_(up), (layer.down,), adapters.down)
    y_TD += middle_TD
    kept = Kept(
        input_scale, input_low, attended, heard_TN, output_low, middle_TD, middle_scale, gate, up, gate_low, down_low
    )
    return y_TD, kept


def _backward(
    layer: Layer, adapters: Adapters, row: Row, x_TD: Tensor, kept: Kept, slope_TD: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    dtype = x_TD.dtype
    swish = functional.silu(kept.gate_TF)
    dact_TF, down_gradients = project_backward(
        (slope_TD,), swish * kept.up_TF, kept.down_low, (layer.down,), adapters.down
    )
    dup_TF = swish.mul_(dact_TF)
    dgate_TF = torch.ops.aten.silu_backward(dact_TF.mul_(kept.up_TF), kept.gate_TF)
    middle_unit = unit(kept.middle_TD, kept.middle_scale)
    normed_TD = layer.mlp_norm.weighed(middle_unit, dtype)
    dnormed_TD, gate_gradients = project_backward(
        (dgate_TF, dup_TF), normed_TD, kept.gate_low, layer.gates, adapters.gates
    )
    dmiddle_TD = layer.mlp_norm.backward(dnormed_TD, middle_unit, kept.middle_scale).to(dtype).add_(slope_TD)

    dheard_TN, output_gradients = project_backward(
        (dmiddle_TD,), kept.heard_TN, kept.output_low, (layer.output,), adapters.output
    )
    dq, dk, dv = attend_backward(dheard_TN, kept.attended, row.groups, layer.heads)
    input_unit = unit(x_TD, kept.input_scale)
    normed_TD = layer.input_norm.weighed(input_unit, dtype)
    dnormed_TD, input_gradients = project_backward(
        (row.queries.backward(dq), row.keys.backward(dk), dv), normed_TD, kept.input_low, layer.inputs, adapters.inputs
    )
    dx_TD = layer.input_norm.backward(dnormed_TD, input_unit, kept.input_scale).to(dtype).add_(dmiddle_TD)
    return dx_TD, [*input_gradients, *output_gradients, *gate_gradients, *down_gradients]
