"""A whole decoder layer of the LLaMA family as one function of autograd: it keeps little, and calls little.

The formulae are transformers' own (models/llama/modeling_llama.py): root-mean-square norm, rotary positions, grouped
attention, SwiGLU. What is cheap to compute anew in the backward pass is not kept. Shapes: T tokens, D numbers a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.elementwise import Elementwise, Norm
from finetune.fused_attention import Attended, Attention, Row
from finetune.fused_linear import Factors, Stack, adapter_gradients, build_factors, project, project_backward


@dataclass(frozen=True)
class Layer:
    """The parts of a decoder layer."""

    input_norm: Norm
    inputs: Stack
    """q, k, v"""
    output: Stack
    mlp_norm: Norm
    gates: Stack
    """gate, up"""
    down: Stack
    attention: Attention
    elementwise: Elementwise

    def trained(self) -> list[nn.Parameter | None]:
        """Return A and B of all seven projections, in their order."""
        stacks = (self.inputs, self.output, self.gates, self.down)
        return [factor for stack in stacks for linear in stack.linears for factor in (linear.a_RI, linear.b_OR)]

    def adapters(self, dtype: torch.dtype) -> Adapters:
        """Copy the adapters as they are now into the type of the computation."""
        return Adapters(*[build_factors(stack, dtype) for stack in (self.inputs, self.output, self.gates, self.down)])


@dataclass(frozen=True)
class Adapters:
    """Those of a layer, by input."""

    inputs: Factors
    output: Factors
    gates: Factors
    down: Factors


@dataclass(frozen=True)
class Kept:
    """What the backward pass does not compute anew."""

    input_scale: Tensor
    input_low: Tensor
    attended: list[Attended]
    heard_TW: Tensor
    output_low: Tensor
    middle_TD: Tensor
    middle_scale: Tensor
    gates_TG: Tensor
    gate_low: Tensor
    down_low: Tensor


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
    parts = layer.elementwise
    normed_TW, input_scale = parts.norm(x_TD, layer.input_norm, layer.inputs.room)
    qkv_TN, input_low = project(normed_TW, layer.inputs, adapters.inputs)
    heard_TW, attended = layer.attention.forward(qkv_TN, row, layer.output.room)
    said_TD, output_low = project(heard_TW, layer.output, adapters.output)
    middle_TD = said_TD.add_(x_TD)
    normed_TW, middle_scale = parts.norm(middle_TD, layer.mlp_norm, layer.gates.room)
    gates_TG, gate_low = project(normed_TW, layer.gates, adapters.gates)
    y_TD, down_low = project(parts.swiglu(gates_TG, layer.down.room), layer.down, adapters.down)
    y_TD += middle_TD
    kept = Kept(
        input_scale, input_low, attended, heard_TW, output_low, middle_TD, middle_scale, gates_TG, gate_low, down_low
    )
    return y_TD, kept


def _backward(
    layer: Layer, adapters: Adapters, row: Row, x_TD: Tensor, kept: Kept, slope_TD: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    parts = layer.elementwise
    dact_TF, dlow_TS = project_backward(slope_TD, layer.down, adapters.down)
    dgates_TG, act_TF = parts.swiglu_backward(dact_TF, kept.gates_TG)
    down_gradients = adapter_gradients(slope_TD, dlow_TS, act_TF, kept.down_low, layer.down)
    slope, dlow_TS = project_backward(dgates_TG, layer.gates, adapters.gates)
    dmiddle_TD, normed_TD = parts.norm_backward(slope, kept.middle_TD, kept.middle_scale, layer.mlp_norm, slope_TD)
    gate_gradients = adapter_gradients(dgates_TG, dlow_TS, normed_TD, kept.gate_low, layer.gates)

    dheard_TN, dlow_TS = project_backward(dmiddle_TD, layer.output, adapters.output)
    heard_TN = kept.heard_TW[:, : layer.output.inputs]
    output_gradients = adapter_gradients(dmiddle_TD, dlow_TS, heard_TN, kept.output_low, layer.output)
    dqkv_TN = layer.attention.backward(dheard_TN, kept.attended, row)
    slope, dlow_TS = project_backward(dqkv_TN, layer.inputs, adapters.inputs)
    dx_TD, normed_TD = parts.norm_backward(slope, x_TD, kept.input_scale, layer.input_norm, dmiddle_TD)
    input_gradients = adapter_gradients(dqkv_TN, dlow_TS, normed_TD, kept.input_low, layer.inputs)
    return dx_TD, [*input_gradients, *output_gradients, *gate_gradients, *down_gradients]
