"""Torch's kernel as each version of torch has it, and what it is not asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig

from finetune.errors import MachineError
from finetune.varlen_attention import LARGEST_HEAD, Documents, TorchKernel, kernel_of, torch_kernel

CUDA = torch.device("cuda")
HEADS, GROUPS, SIZE, SCALE = 4, 2, 8, 0.25
DOCUMENTS = Documents(torch.tensor([0, 2, 3, 7], dtype=torch.int32), 4)


class Asked(Exception):
    """What a function of torch's was called with."""

    def __init__(self, places: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.places, self.named = places, named


def in_2_10(*places: Any, is_causal: bool = False) -> Tensor:
    raise Asked(places, {"is_causal": is_causal})


def in_2_11(*places: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    raise Asked(places, {"scale": scale, "window_size": window_size})


def in_2_13(
    *places: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False
) -> Tensor:
    raise Asked(places, {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa})


def asked_of(kernel: TorchKernel, groups: int) -> tuple[Asked, tuple[Tensor, Tensor]]:
    query, key, value = (torch.randn(7, heads, SIZE) for heads in (HEADS, groups, groups))
    with pytest.raises(Asked) as found:
        kernel.attend(query, key, value, DOCUMENTS, SCALE)
    asked = found.value
    assert asked.places[0] is query
    assert asked.places[3] is asked.places[4] is DOCUMENTS.bounds
    assert asked.places[5:] == (4, 4)
    assert (asked.named["scale"], asked.named["window_size"]) == (SCALE, (-1, 0))
    return asked, (key, value)


@pytest.mark.parametrize("groups", [GROUPS, HEADS])
def test_heads_are_repeated_where_torch_takes_no_groups(groups: int) -> None:
    asked, given = asked_of(kernel_of(in_2_11), groups)
    for repeated, own in zip(asked.places[1:3], given, strict=True):
        for head in range(HEADS):
            assert torch.equal(repeated[:, head], own[:, head * groups // HEADS])


@pytest.mark.parametrize("groups", [GROUPS, HEADS])
def test_heads_are_left_alone_where_torch_takes_groups(groups: int) -> None:
    asked, (key, value) = asked_of(kernel_of(in_2_13), groups)
    assert asked.named["enable_gqa"]
    assert asked.places[1] is key
    assert asked.places[2] is value


def test_a_kernel_without_a_window_is_refused() -> None:
    with pytest.raises(MachineError, match=r"(?s)takes no window_size.*batches=padded"):
        kernel_of(in_2_10)


def test_the_installed_torch_has_the_kernel() -> None:
    assert torch_kernel().takes_groups


@pytest.mark.parametrize(
    ("config", "dtype", "device", "why"),
    [
        (LlamaConfig(), torch.bfloat16, "cuda", None),
        (LlamaConfig(), torch.float16, "cuda", None),
        (LlamaConfig(head_dim=LARGEST_HEAD), torch.float16, "cuda", None),
        (LlamaConfig(), torch.bfloat16, "cpu", "needs CUDA, and the model is on cpu"),
        (LlamaConfig(), torch.float32, "cuda", "16 bits, and the model in float32"),
        (MistralConfig(), torch.bfloat16, "cuda", "type 'mistral'"),
        (LlamaConfig(attention_dropout=0.1), torch.bfloat16, "cuda", "dropout"),
        (LlamaConfig(head_dim=20), torch.bfloat16, "cuda", "20 numbers"),
        (LlamaConfig(head_dim=LARGEST_HEAD + 8), torch.bfloat16, "cuda", "200 numbers"),
    ],
)
def test_what_the_kernel_is_not_asked_for(
    config: PreTrainedConfig, dtype: torch.dtype, device: str, why: str | None
) -> None:
    found = TorchKernel(in_2_13, takes_groups=True).why_not(config, dtype, torch.device(device))
    assert found is None if why is None else why in str(found)
