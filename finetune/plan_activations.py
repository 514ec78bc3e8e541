"""What autograd keeps from the forward pass for the backward pass, in bytes, counted from what each operation saves.

Five ways of computing a layer are known, each with a formula of its own:

- `plain`: transformers and peft as they are, in the type of the weights. peft casts the input of every fp32 adapter to
  fp32, and each cast is kept.
- `autocast`: the same under bf16 autocast, as on a GPU, where each adapter's input is kept once more in bf16.
- `autocast_nf4`: that on a 4-bit base, whose adapters peft gives their inputs as they are under a GPU's autocast
  (peft/tuners/lora/bnb.py), so that those with the same input share it.
- `fused`: each layer as one function of ours (finetune/fused_layer.py), which keeps nothing twice and pads nothing.
- `uncast`: adapters in the type of the weights, as torchtune and LitGPT hold them; nothing here trains so, and
  published figures are explained by it.

tests/laws/test_plan_laws.py compares them with the bytes that autograd holds, to the byte, and what the backward pass
holds beside them with what torch's profiler counts. A further way of computing is a further entry of `LAYER_FORMULAE`
and of `BACKWARD_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from finetune.model_shape import ModelShape
from finetune.recipe import Projection

ActivationPath = Literal["plain", "autocast", "autocast_nf4", "fused", "uncast"]

FP32 = 4
BACKWARD_BYTES: dict[tuple[ActivationPath, int], tuple[int, int]] = {
    ("plain", 2): (8, 12),
    ("plain", 4): (8, 0),
    ("autocast", 2): (6, 10),
    ("autocast_nf4", 2): (4, 2),
    ("uncast", 2): (4, 2),
    ("fused", 2): (16, 8),
    ("fused", 4): (32, 16),
}
"""Bytes of the MLP's inner size and of the hidden size that a layer's backward pass holds for each token beside what
was saved, by the bytes of an element. At the peak the base's gradient of the inner size meets that of the adapter,
which is in fp32 where peft has cast the adapter's input to it. By torch's profiler: a law does it again for the
libraries' layers; for ours it was done once (60M parameters, 1,024 tokens in bfloat16, docs/log.md)."""
READ_FIRST: tuple[Projection, ...] = ("q_proj", "k_proj", "v_proj")
"""The projections that read a layer's first norm."""


@dataclass(frozen=True)
class Held:
    """What one device computes at a time."""

    rows: int
    row_tokens: int
    """Tokens of a row, with padding."""
    masked: bool
    """Whether attention is given a mask of all pairs: rows with padding, or several examples in a row, by SDPA."""

    filled: int
    """Tokens without padding."""

    @property
    def tokens(self) -> int:
        """Count all tokens, with padding."""
        return self.rows * self.row_tokens


@dataclass(frozen=True)
class Layers:
    """How layers are computed."""

    shape: ModelShape
    targets: tuple[Projection, ...]
    rank: int
    dora: bool
    dropout: bool
    element: int
    """Bytes of an element of the hidden states: 2 or 4."""
    path: ActivationPath
    dropout_mask: int
    """Bytes of an element of a dropout mask: 4 on a CPU (one number), 1 on a GPU."""


def saved_by_layer(layers: Layers, held: Held) -> int:
    """Return the bytes that a layer in the middle of the model keeps."""
    formula = LAYER_FORMULAE[layers.path]
    if layers.path == "fused":
        return held.filled * formula(layers, held.masked)
    mask = held.rows * held.row_tokens**2 * layers.element if held.masked else 0
    return held.tokens * formula(layers, held.masked) + mask


def saved_by_model(layers: Layers, held: Held) -> int:
    """Return the bytes that all layers and the last norm keep; the loss keeps its own.

    The embedding is frozen, so nothing before the first adapters has a gradient: the first norm is not kept (the last
    one is instead), nor what only the gradient of its output would need.
    """
    shape = layers.shape
    if layers.path == "fused":
        norm = held.filled * (shape.hidden * layers.element + FP32)
        return shape.layers * saved_by_layer(layers, held) + norm
    first = tuple(name for name in layers.targets if name in READ_FIRST)
    first_masks = layers.dropout * layers.dropout_mask * len(first) * shape.hidden
    rotary = 2 * held.row_tokens * shape.head_size * layers.element
    kept = shape.layers * saved_by_layer(layers, held) - held.tokens * first_masks
    return kept + rotary + _kept_of_weights(layers, first)


def saved_by_checkpoints(layers: Layers, held: Held) -> int:
    """Return the bytes that stay between forward and backward where layers are computed again: their inputs."""
    tokens = held.filled if layers.path == "fused" else held.tokens
    return layers.shape.layers * tokens * layers.shape.hidden * layers.element


def held_by_backward(layers: Layers, held: Held) -> int:
    """Return the bytes that the backward pass of one layer holds beside what was saved."""
    inner, hidden = BACKWARD_BYTES[layers.path, layers.element]
    tokens = held.filled if layers.path == "fused" else held.tokens
    return tokens * (inner * layers.shape.intermediate + hidden * layers.shape.hidden)


def _plain(layers: Layers, masked: bool) -> int:
    return _frozen_parts(layers, masked) + _plain_adapters(layers)


def _autocast(layers: Layers, masked: bool) -> int:
    """Bytes a token: the frozen parts, and for each adapter its input and the product with A, both in bf16."""
    shape = layers.shape
    inputs = sum(shape.projection(name)[0] for name in layers.targets)
    outputs = sum(shape.projection(name)[1] for name in layers.targets)
    dora = layers.dora * 2 * outputs * layers.element
    masks = layers.dropout * layers.dropout_mask * inputs
    return _frozen_parts(layers, masked) + 2 * (inputs + layers.rank * len(layers.targets)) + dora + masks


def _autocast_nf4(layers: Layers, masked: bool) -> int:
    """Bytes a token: as `autocast`, but inputs are shared, unless dropout makes one of its own for each adapter."""
    apart = _autocast(layers, masked)
    if layers.dropout:
        return apart
    return apart + _shared_inputs(layers) - 2 * sum(layers.shape.projection(name)[0] for name in layers.targets)


def _fused(layers: Layers, masked: bool) -> int:  # noqa: ARG001  # documents are attended to one by one
    """Bytes a token: both hidden states, q, k, v, attention's output, gate, up, products with A, and scales in fp32.

    Beside attention's output there is room for its product with A; each query head has the sum of its softmax.
    """
    shape = layers.shape
    numbers = 2 * shape.hidden + 2 * shape.query_size + 2 * shape.kv_size + 2 * shape.intermediate
    products = len(layers.targets) + ("o_proj" in layers.targets)
    return (numbers + layers.rank * products) * layers.element + (2 + shape.query_size // shape.head_size) * FP32


def _uncast(layers: Layers, masked: bool) -> int:
    return _frozen_parts(layers, masked) + _shared_inputs(layers) + layers.element * layers.rank * len(layers.targets)


LAYER_FORMULAE: dict[ActivationPath, Callable[[Layers, bool], int]] = {
    "plain": _plain,
    "autocast": _autocast,
    "autocast_nf4": _autocast_nf4,
    "fused": _fused,
    "uncast": _uncast,
}
"""Bytes that a layer keeps for each token, apart from the attention mask."""


def _frozen_parts(layers: Layers, masked: bool) -> int:
    """Bytes a token of norms, attention and MLP.

    Norms: their inputs in fp32 and one number a row. Attention: q, k, v, the output, and the logarithm of each head's
    sum; with a mask, k and v are repeated for every head (https://arxiv.org/abs/2307.08691, section 3.1, for what the
    backward pass needs). MLP: what SiLU is given, what it returns, and the other factor.
    """
    shape = layers.shape
    norms = 2 * FP32 * (shape.hidden + 1)
    keys = shape.query_size if masked else shape.kv_size
    attention = (2 * shape.query_size + 2 * keys) * layers.element + FP32 * shape.heads
    return norms + attention + 3 * shape.intermediate * layers.element


def _plain_adapters(layers: Layers) -> int:
    """Bytes a token of what adapters keep in fp32: their inputs, and the products with A.

    Where everything is fp32, nothing is cast. Dropout makes an input of its own for each, and keeps its mask.
    """
    shape, targets = layers.shape, layers.targets
    cast = layers.dropout or layers.element != FP32
    outputs = sum(shape.projection(name)[1] for name in targets)
    kept = FP32 * layers.rank * len(targets) + layers.dora * (FP32 + layers.element) * outputs
    if cast:
        inputs = sum(shape.projection(name)[0] for name in targets)
        return kept + (FP32 + layers.dropout * layers.dropout_mask) * inputs
    return kept + _shared_inputs(layers)


def _shared_inputs(layers: Layers) -> int:
    """Bytes a token of the inputs of adapters that cast nothing.

    q, k and v share one, gate and up another; o has the output of attention, which is kept already.
    """
    shape, targets = layers.shape, layers.targets
    numbers = shape.hidden * any(name in targets for name in READ_FIRST)
    numbers += shape.hidden * any(name in targets for name in ("gate_proj", "up_proj"))
    return layers.element * (numbers + shape.intermediate * ("down_proj" in targets))


def _kept_of_weights(layers: Layers, first: tuple[Projection, ...]) -> int:
    """Bytes that do not grow with the tokens: what the adapters' own weights are turned into.

    Autocast keeps bf16 copies of both factors. DoRA keeps the lengths of all weight rows and what follows from them.
    """
    shape, kept = layers.shape, 0
    if layers.path in ("autocast", "autocast_nf4"):
        kept += 2 * shape.adapter_parameters(layers.targets, layers.rank, dora=False)
        kept -= 2 * layers.rank * shape.hidden * len(first)
    if layers.dora:
        kept += 3 * FP32 * shape.layers * sum(shape.projection(name)[1] for name in layers.targets)
        kept -= FP32 * sum(shape.projection(name)[1] for name in first)
    return kept
