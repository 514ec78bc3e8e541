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
from finetune.fused_linear import Adapters, Linear, in_type, project, project_backward, trained


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm; its weight is frozen."""

    weight_D: Tensor
    epsilon: float

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed tokens, and what each was multiplied with, (T, 1) in fp32."""
        size_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        scale_T1 = size_T1.square_().div_(x_TD.shape[1]).add_(self.epsilon).rsqrt_()
        return self.scaled(x_TD, scale_T1), scale_T1

    def scaled(self, x_TD: Tensor, scale_T1: Tensor) -> Tensor:
        """Return the normed tokens again."""
        return _multiplied(x_TD, scale_T1).to(x_TD.dtype).mul_(self.weight_D)

    def backward(self, slope_TD: Tensor, x_TD: Tensor, scale_T1: Tensor) -> Tensor:
        """Return the gradient of the tokens, in fp32."""
        unit = _multiplied(x_TD, scale_T1)
        slope = (slope_TD * self.weight_D).float()
        along_T1 = torch.linalg.vecdot(slope, unit).div_(unit.shape[1]).neg_()[:, None]
        return slope.addcmul_(unit, along_T1).mul_(scale_T1)


def _multiplied(x_TD: Tensor, scale_T1: Tensor) -> Tensor:
    """Multiply in fp32."""
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
        return list(trained((*self.inputs, self.output, *self.gates, self.down)))


@dataclass(frozen=True)
class Row:
    """Where the documents of a row lie, and the rotation of each token."""

    groups: Sequence[Group]
    cos_T1E: Tensor
    sin_T1E: Tensor
    """Negative in the first half of each head."""

    def rotated(self, x_TN: Tensor) -> Tensor:
        """Rotate queries or keys."""
        x = x_TN.view(len(x_TN), -1, self.cos_T1E.shape[-1])
        half = x.shape[-1] // 2
        return (x * self.cos_T1E).addcmul_(x.roll(half, -1), self.sin_T1E).view_as(x_TN)

    def rotated_back(self, x_TN: Tensor) -> Tensor:
        """Rotate the gradients of queries or keys: the transpose, which is the rotation the other way."""
        x = x_TN.view(len(x_TN), -1, self.cos_T1E.shape[-1])
        half = x.shape[-1] // 2
        return (x * self.cos_T1E).addcmul_(x.roll(half, -1), self.sin_T1E, value=-1).view_as(x_TN)


@dataclass(frozen=True)
class Kept:
    """What the backward pass does not compute anew."""

    input_scale: Tensor
    input_lows: list[Tensor | None]
    attended: list[Attended]
    heard_TN: Tensor
    output_low: list[Tensor | None]
    middle_TD: Tensor
    middle_scale: Tensor
    gate_TF: Tensor
    up_TF: Tensor
    gate_lows: list[Tensor | None]
    down_low: list[Tensor | None]


def compute(layer: Layer, row: Row, x_TD: Tensor, *, recompute: bool) -> Tensor:
    """Put a row of documents through a layer; with `recompute` nothing but its input is kept for the backward pass."""
    return cast(Tensor, _Computed.apply(x_TD, layer, row, recompute, *layer.trained()))  # type: ignore[no-untyped-call]


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, layer: Layer, row: Row, recompute: bool, *_trained: Tensor | None) -> Tensor:
        y_TD, kept = _forward(layer, row, x_TD)
        ctx.save_for_backward(x_TD)
        ctx.layer, ctx.row, ctx.kept = layer, row, None if recompute else kept
        return y_TD

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,) = ctx.saved_tensors
        kept = ctx.kept or _forward(ctx.layer, ctx.row, x_TD)[1]
        ctx.kept = None
        dx_TD, gradients = _backward(ctx.layer, ctx.row, x_TD, kept, slopes[0])
        return dx_TD, None, None, None, *gradients


def _forward(layer: Layer, row: Row, x_TD: Tensor) -> tuple[Tensor, Kept]:
    dtype = x_TD.dtype
    normed_TD, input_scale = layer.input_norm.forward(x_TD)
    (q, k, v), input_lows = project(normed_TD, layer.inputs, in_type(layer.inputs, dtype))
    heard_TN, attended = attend(row.rotated(q), row.rotated(k), v, row.groups, layer.heads)
    (said_TD,), output_low = project(heard_TN, (layer.output,), in_type((layer.output,), dtype))
    middle_TD = said_TD.add_(x_TD)
    normed_TD, middle_scale = layer.mlp_norm.forward(middle_TD)
    (gate, up), gate_lows = project(normed_TD, layer.gates, in_type(layer.gates, dtype))
    (y_TD,), down_low = project(functional.silu(gate).mul_(up), (layer.down,), in_type((layer.down,), dtype))
    y_TD += middle_TD
    kept = Kept(
        input_scale, input_lows, attended, heard_TN, output_low, middle_TD, middle_scale, gate, up, gate_lows, down_low
    )
    return y_TD, kept


def _backward(layer: Layer, row: Row, x_TD: Tensor, kept: Kept, slope_TD: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    dtype = x_TD.dtype
    slope_TD = slope_TD.contiguous()
    swish = functional.silu(kept.gate_TF)
    down = in_type((layer.down,), dtype)
    dact_TF, down_gradients = project_backward((slope_TD,), swish * kept.up_TF, kept.down_low, (layer.down,), down)
    dup_TF = swish.mul_(dact_TF)
    dgate_TF = torch.ops.aten.silu_backward(dact_TF.mul_(kept.up_TF), kept.gate_TF)
    normed_TD = layer.mlp_norm.scaled(kept.middle_TD, kept.middle_scale)
    gates = in_type(layer.gates, dtype)
    dnormed_TD, gate_gradients = project_backward((dgate_TF, dup_TF), normed_TD, kept.gate_lows, layer.gates, gates)
    dmiddle = layer.mlp_norm.backward(dnormed_TD, kept.middle_TD, kept.middle_scale)
    dmiddle_TD = dmiddle.to(dtype).add_(slope_TD)

    output = in_type((layer.output,), dtype)
    dheard_TN, output_gradients = project_backward(
        (dmiddle_TD,), kept.heard_TN, kept.output_low, (layer.output,), output
    )
    dq, dk, dv = attend_backward(dheard_TN, kept.attended, row.groups, layer.heads)
    normed_TD = layer.input_norm.scaled(x_TD, kept.input_scale)
    inputs: Adapters = in_type(layer.inputs, dtype)
    dnormed_TD, input_gradients = project_backward(
        (row.rotated_back(dq), row.rotated_back(dk), dv), normed_TD, kept.input_lows, layer.inputs, inputs
    )
    dx = layer.input_norm.backward(dnormed_TD, x_TD, kept.input_scale)
    return dx.to(dtype).add_(dmiddle_TD), [*input_gradients, *output_gradients, *gate_gradients, *down_gradients]
