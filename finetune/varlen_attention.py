"""Attention of packed rows by the flash attention kernels that torch brings, with no mask of all pairs.

transformers gives every layer, as `attention_mask`, what the mask function of its attention returned
(https://huggingface.co/docs/transformers/attention_interface). For packed rows ours returns where documents begin,
found once a forward pass. Whatever else is asked for (padding, a cache, a mask that is there already, one document
alone) gets the mask that SDPA has, and is computed by it.

Shapes: B rows of T tokens, or T tokens of all rows one after another; H heads, G of keys and values; D numbers a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from finetune.errors import MachineError

NAME = "varlen"
"""Under which transformers finds it, and which `finetune.capabilities` chooses."""
KERNEL_DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 192
"""Numbers of a head, of which every GPU from Ampere on computes the backward pass; LLaMA's have 64 or 128.
https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp"""

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key, from the numbers of row, head, query and key: transformers' description of a mask."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of packed rows stand, the rows one after another."""

    bounds: Tensor
    """Tokens before each document, and all tokens at the end: int32, of shape (documents + 1,)."""
    longest: int
    """Tokens of the longest document."""


class Kernel(Protocol):
    """What attends to documents, each by itself and causally."""

    def why_not(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
        """Say why it cannot compute a model's attention in a type on a device; nothing where it can."""

    def attend(
        self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, documents: Documents, scale: float | None
    ) -> Tensor:
        """Return what every token heard, (T, H, D); `scale` multiplies the scores, 1/√D if not given."""


@dataclass(frozen=True)
class TorchKernel:
    """`torch.nn.attention.varlen.varlen_attn`, as the torch that is installed has it."""

    function: Callable[..., Any]
    takes_groups: bool
    """Whether several heads of queries may share one of keys and values."""

    def why_not(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
        """Say why the kernel cannot compute a model's attention in a type on a device; nothing where it can."""
        if device.type != "cuda":
            return f"the kernel needs CUDA, and the model is on {device.type}"
        if dtype not in KERNEL_DTYPES:
            return f"the kernel computes in 16 bits, and the model in {str(dtype).removeprefix('torch.')}"
        if config.model_type != "llama":  # others may cap scores or see a window: what the kernel is not asked for
            return f"a model of type {config.model_type!r} is not known to attend as LLaMA does"
        if config.attention_dropout:
            return "its attention has dropout"
        if config.head_dim % 8 or config.head_dim > LARGEST_HEAD:
            return f"its heads have {config.head_dim} numbers, not a multiple of 8 up to {LARGEST_HEAD}"
        return None

    def attend(
        self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, documents: Documents, scale: float | None
    ) -> Tensor:
        """Return what every token heard, (T, H, D); `scale` multiplies the scores, 1/√D if not given."""
        shared = query_THD.shape[1] // key_TGD.shape[1]
        if shared > 1 and not self.takes_groups:
            key_TGD, value_TGD = (tensor.repeat_interleave(shared, dim=1) for tensor in (key_TGD, value_TGD))
        places = (documents.bounds, documents.bounds, documents.longest, documents.longest)
        grouped = {"enable_gqa": True} if self.takes_groups else {}
        causal = (-1, 0)  # everything before, nothing behind; torch compares with this very tuple
        heard_THD: Tensor = self.function(
            query_THD, key_TGD, value_TGD, *places, scale=scale, window_size=causal, **grouped
        )
        return heard_THD


def torch_kernel() -> TorchKernel:
    """Take torch's kernel.

    Raises:
        MachineError: this version of torch has another one.
    """
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler, which takes a second

    return kernel_of(varlen_attn)


def kernel_of(function: Callable[..., Any]) -> TorchKernel:
    """Take a function of torch's by what it says it takes.

    torch 2.10 has `is_causal` and no scale (https://github.com/pytorch/pytorch/pull/172245); from 2.11 on there is
    `window_size`, and from 2.12 on `enable_gqa` (https://github.com/pytorch/pytorch/pull/179468).

    Raises:
        MachineError: it takes no window.
    """
    taken = inspect.signature(function).parameters
    if not {"window_size", "scale"} <= taken.keys():
        raise MachineError(
            f"varlen_attn of torch {torch.__version__} takes no window_size and scale",
            where="training.batches",
            hint="install torch 2.11 or later, or --set training.batches=padded",
        )
    return TorchKernel(function, takes_groups="enable_gqa" in taken)


@dataclass(frozen=True)
class VarlenAttention:
    """The pair of functions that transformers asks: for the mask once a forward pass, for attention in every layer."""

    kernel: Kernel

    def register(self) -> None:
        """Have transformers find it under `NAME`."""
        AttentionInterface.register(NAME, self.attend)
        AttentionMaskInterface.register(NAME, self.mask)

    def why_masked(self, model: PreTrainedModel) -> str | None:
        """Say why a model's packed rows are given a mask of all pairs after all; nothing where they are not."""
        return self.kernel.why_not(model.config, model.dtype, model.device)

    def mask(self, **asked: Any) -> Tensor | Documents | None:
        """Return where documents begin, for packed rows that the kernel takes, or else what SDPA's mask function does.

        transformers finds packed rows by their positions, only where there is neither a mask nor a cache, and then
        asks for a mask that `is_causal` does not stand for (transformers.masking_utils.create_causal_mask, 5.23).
        """
        length, device = int(asked["q_length"]), torch.device(asked["device"])
        packed = (
            asked["attention_mask"] is None
            and not asked["allow_is_causal_skip"]
            and not asked["use_vmap"]
            and length == asked["kv_length"]
        )
        if packed and self.kernel.why_not(asked["config"], asked["dtype"], device) is None:
            return find_documents(asked["mask_function"], int(asked["batch_size"]), length, device)
        mask: Tensor | None = sdpa_mask(**asked)
        return mask

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | Documents | None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Take (B, H or G, T, D) and return (B, T, H, D), and nothing for the weights, in transformers' signature."""
        if not isinstance(attention_mask, Documents):
            by_sdpa: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
            return by_sdpa
        query_THD, key_TGD, value_TGD = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
        heard_THD = self.kernel.attend(query_THD, key_TGD, value_TGD, attention_mask, settings.get("scaling"))
        return heard_THD.unflatten(0, (query.shape[0], query.shape[2])), None


def find_documents(sees: Sees, rows: int, length: int, device: torch.device) -> Documents:
    """Find where documents begin: at a token that does not see the one before it, and with every row.

    Asked is what the mask of all pairs would be made of, so that the two cannot disagree. A GPU is waited for twice.
    """
    row_B1 = torch.arange(rows, device=device)[:, None]
    later_1T = torch.arange(1, length, device=device)[None]
    begins_BT = torch.ones(rows, length, dtype=torch.bool, device=device)
    begins_BT[:, 1:] = ~sees(row_B1, torch.zeros_like(row_B1), later_1T, later_1T - 1)
    first = begins_BT.flatten().nonzero()[:, 0]
    bounds = torch.nn.functional.pad(first, (0, 1), value=rows * length)
    return Documents(bounds.to(torch.int32), int(bounds.diff().max()))
