"""What a machine can do, and what is chosen for it; each choice is named in `finetune show` and in the report."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from finetune.errors import MachineError
from finetune.machine import compiler_version
from finetune.recipe import Recipe, Tracker

if TYPE_CHECKING:
    from evaluation.model import Attention  # brings torch, which a plan does without

LayerPath = Literal["fused", "plain"]
ElementwisePath = Literal["compiled", "torch"]
LossPath = Literal["labelled", "trl_fused"]
Optimizer = Literal["adamw_torch_fused", "paged_adamw_8bit"]

FLASH_ATTENTION_CAPABILITY = (8, 0)
"""Ampere, the oldest architecture of FlashAttention 2: https://github.com/Dao-AILab/flash-attention#installation-and-features"""


@dataclass(frozen=True)
class Machine:
    """What the choices rest on."""

    cuda: bool
    cuda_capability: tuple[int, int] = (0, 0)
    bf16: bool = True
    triton: bool = False
    flash_attention: bool = False
    """Whether the package flash-attn is installed."""
    varlen: bool = False
    """Whether torch has flash attention for documents of several lengths itself."""
    bitsandbytes: bool = True
    compiler: bool = False


@dataclass(frozen=True)
class Choices:
    """How training is carried out here."""

    attention: Attention
    loss: LossPath
    """`labelled`: our own loss over labelled positions; `trl_fused`: TRL's Triton kernel."""
    optimizer: Optimizer
    bf16_autocast: bool
    layers: LayerPath = "plain"
    """`fused`: each decoder layer as one function of ours; `plain`: transformers' and peft's."""
    elementwise: ElementwisePath = "torch"
    """What computes all of a fused layer but its products: functions of ours compiled for this machine, or torch's."""

    def named(self) -> dict[str, str]:
        """Return the choices as text."""
        return {
            "attention": self.attention,
            "layers": f"fused, {self.elementwise}" if self.layers == "fused" else self.layers,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "autocast": "bfloat16" if self.bf16_autocast else "off",
        }


def require_tracker(tracker: Tracker | None) -> None:
    """Check that the package of a tracker is installed.

    Raises:
        MachineError: it is not, and which package to install.
    """
    if tracker is not None and find_spec(tracker) is None:
        raise MachineError(f"{tracker} is not installed", where="tracking", hint=f"pip install {tracker}")


def this_machine() -> Machine:
    """Look at this machine."""
    import torch

    if not torch.cuda.is_available():
        return Machine(cuda=False, compiler=compiler_version() is not None)
    return Machine(
        cuda=True,
        cuda_capability=torch.cuda.get_device_capability(),
        bf16=torch.cuda.is_bf16_supported(),
        triton=find_spec("triton") is not None,
        flash_attention=find_spec("flash_attn") is not None,
        varlen=_has_varlen(),
    )


def _has_varlen() -> bool:
    """Look for torch's own kernels, which NVIDIA's builds for Linux have from torch 2.10 on."""
    import torch

    built = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    return built and find_spec("torch.nn.attention.varlen") is not None


def choose(machine: Machine, recipe: Recipe) -> Choices:
    """Choose the fast paths that this machine has.

    The CPU gets what is exact and quick there: layers of our own where the adapter is one that they know, the loss over
    labelled positions, plain AdamW, no autocast.
    """
    dtype = recipe.base.dtype
    if not machine.cuda:
        known = recipe.adapter.dropout == 0 and recipe.adapter.variant != "dora"
        layers: LayerPath = "fused" if known and recipe.training.kernels == "auto" else "plain"
        known_type = dtype in ("float32", "bfloat16")
        elementwise: ElementwisePath = "compiled" if machine.compiler and layers == "fused" and known_type else "torch"
        return Choices(
            "sdpa", "labelled", "adamw_torch_fused", bf16_autocast=False, layers=layers, elementwise=elementwise
        )
    return Choices(
        attention=_choose_attention(machine, recipe),
        loss="trl_fused" if machine.triton else "labelled",
        optimizer="paged_adamw_8bit" if machine.bitsandbytes else "adamw_torch_fused",
        bf16_autocast=machine.bf16 and dtype == "bfloat16",
    )


def _choose_attention(machine: Machine, recipe: Recipe) -> Attention:
    """Choose flash attention where it can be had: the package's; for packed rows, whose mask SDPA makes, torch's."""
    if machine.cuda_capability < FLASH_ATTENTION_CAPABILITY or recipe.base.dtype == "float32":
        return "sdpa"
    if machine.flash_attention:
        return "flash_attention_2"
    return "varlen" if machine.varlen and recipe.training.batches == "packed" else "sdpa"
