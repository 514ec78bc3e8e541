"""How much memory training takes at its peak, term by term, from the sizes of a model and the settings of a recipe.

No weights are read. Weights, adapter, optimizer and activations follow from arithmetic; what was measured instead is a
named constant that says where. Bytes are of one device (on a CPU: of one process).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

from finetune.plan_activations import (
    FP32,
    Held,
    Layers,
    held_by_backward,
    saved_by_checkpoints,
    saved_by_layer,
    saved_by_model,
)

Loss = Literal["labelled", "trl_fused", "full_logits"]
"""The two of finetune.capabilities, and what other tools do."""
OptimizerState = Literal["fp32", "8bit", "bf16"]

LOSS_CHUNK_ROWS = 128
"""evaluation.token_loss.CHUNK_ROWS, which would bring torch with it; a test compares the two."""
LOSS_CHUNK_WORDS = 8192
"""evaluation.token_loss.CHUNK_WORDS."""
NF4_BLOCK = 64
"""Weights that share a scale (https://arxiv.org/abs/2305.14314, section 3; bitsandbytes' default)."""
SCALE_BLOCK = 256
"""Scales that share one, where they are quantized to 8 bits themselves (the same, "double quantization")."""
OPTIMIZER_BLOCK = 256
"""Numbers of an 8-bit state that share a scale (bitsandbytes.optim, https://arxiv.org/abs/2110.02861)."""
FUSED_TILE_ROWS, FUSED_TILE_COLUMNS = 4096, 32_768
"""Of TRL 1.16's loss, trl/kernels/chunked_logprob.py."""

CPU_PROCESS = 750_000_000
"""Python, torch, transformers, peft and TRL with nothing loaded, their thread pools and kernels (docs/planning.md)."""
CPU_PROCESS_LOADING = 600_000_000
"""The same before anything is trained."""
CUDA_WORKSPACE = 100_000_000
"""cuBLAS's workspace and small buffers, which torch counts; the CUDA context is not counted by torch, but by
`finetune.plan_devices` as what a device does not have to give."""


@dataclass(frozen=True)
class Setup:
    """What is trained and how, as far as memory is concerned."""

    layers: Layers
    held: Held
    device: Literal["cpu", "cuda"]
    nf4: Literal["no", "single", "double"]
    """Whether the base is stored in 4 bits, and its scales in 32 or in 8."""
    checkpointing: bool
    optimizer: OptimizerState
    loss: Loss
    adapter_element: int
    """Bytes of an adapter's weight, and of its gradient."""
    stored_bytes: int
    """Size of the base's files, which are mapped into memory while they are read."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by term; the order is that of the picture."""

    weights: int
    quantization: int
    """Scales of the 4-bit weights, and the largest matrix as it is multiplied with."""
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """What the loss holds, the head's fp32 copy with it."""
    workspace: int
    """The process or CUDA's workspace, and what the backward pass of one layer holds beside the activations."""

    @property
    def total(self) -> int:
        """Add all terms up."""
        return sum(astuple(self))


def predict(setup: Setup) -> Memory:
    """Predict the terms at the peak: at the end of the forward pass, or where reading the base takes more.

    At the end of the forward pass the loss is computed while every activation is held; the first layer of the backward
    pass then takes the place of what the loss held. The larger of the two is counted.
    """
    shape = setup.layers.shape
    adapter = _adapter_parameters(setup)
    quantized = shape.linear_parameters if setup.nf4 != "no" else 0
    logits, backward = _loss_bytes(setup), _backward_bytes(setup)
    process = CPU_PROCESS if setup.device == "cpu" else CUDA_WORKSPACE
    memory = Memory(
        weights=quantized // 2 + (shape.parameters - quantized) * setup.layers.element,
        quantization=_quantization_bytes(setup, quantized),
        adapter=setup.adapter_element * adapter,
        gradients=setup.adapter_element * adapter,
        optimizer=_optimizer_bytes(setup.optimizer, adapter),
        activations=_activation_bytes(setup),
        logits=logits,
        workspace=process + max(0, backward - logits),
    )
    loading = CPU_PROCESS_LOADING + memory.weights + memory.quantization + setup.stored_bytes
    if setup.device == "cpu" and loading > memory.total:
        return Memory(memory.weights, memory.quantization, 0, 0, 0, 0, 0, CPU_PROCESS_LOADING + setup.stored_bytes)
    return memory


def _adapter_parameters(setup: Setup) -> int:
    layers = setup.layers
    return layers.shape.adapter_parameters(layers.targets, layers.rank, dora=layers.dora)


def _quantization_bytes(setup: Setup, quantized: int) -> int:
    """0.5 bits a weight for fp32 scales, 0.127 where they are in 8 bits; and one matrix at a time in full."""
    if not quantized:
        return 0
    blocks = quantized // NF4_BLOCK
    scales = blocks * FP32 if setup.nf4 == "single" else blocks + FP32 * blocks // SCALE_BLOCK
    shape = setup.layers.shape
    return scales + max(shape.intermediate, shape.query_size) * shape.hidden * setup.layers.element


def _optimizer_bytes(state: OptimizerState, parameters: int) -> int:
    """AdamW's two moments."""
    match state:
        case "fp32":
            return 2 * FP32 * parameters
        case "bf16":
            return 2 * 2 * parameters
        case "8bit":
            return 2 * (parameters + FP32 * parameters // OPTIMIZER_BLOCK)


def _activation_bytes(setup: Setup) -> int:
    if not setup.checkpointing:
        return saved_by_model(setup.layers, setup.held)
    return saved_by_checkpoints(setup.layers, setup.held)


def _backward_bytes(setup: Setup) -> int:
    """Return what the backward pass of one layer holds beside the activations.

    With checkpointing, those of the layer are computed again just before. Layers of ours cast their adapters as well.
    """
    layers, held = setup.layers, setup.held
    again = saved_by_layer(layers, held) if setup.checkpointing else 0
    cast = layers.path == "fused" and layers.element != FP32
    copies = layers.element * _adapter_parameters(setup) if cast else 0
    return held_by_backward(layers, held) + copies + again


def _loss_bytes(setup: Setup) -> int:
    """Return what the loss holds, every token labelled."""
    shape, tokens, element = setup.layers.shape, setup.held.tokens, setup.layers.element
    match setup.loss:
        case "labelled":
            if setup.device == "cpu" and element != FP32:
                # As keys and as values; tiles hold less.
                packed = 2 * min(LOSS_CHUNK_WORDS, shape.vocabulary) * shape.hidden * element
                return packed + tokens * shape.hidden * (2 * FP32 + 2 * element)
            head = shape.vocabulary * shape.hidden * FP32 if element != FP32 else 0
            at_once = 3 if tokens > LOSS_CHUNK_ROWS else 2  # logits, their log-softmax, the slope of the chunk before
            chunks = at_once * min(LOSS_CHUNK_ROWS, tokens) * shape.vocabulary * FP32
            return head + chunks + tokens * shape.hidden * (element + 2 * FP32)
        case "trl_fused":
            tile = min(tokens, FUSED_TILE_ROWS) * min(shape.vocabulary, FUSED_TILE_COLUMNS) * element
            return tile + tokens * shape.hidden * (FP32 + element)
        case "full_logits":
            # Logits as computed and in fp32, their log-softmax, and the gradient: what transformers' own loss holds.
            return tokens * shape.vocabulary * (element + 3 * FP32)
