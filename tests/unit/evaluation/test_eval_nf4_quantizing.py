"""Quantizing with a table of levels is what bitsandbytes does, to the byte."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
from torch import Tensor

from evaluation.nf4_quantizing import NUMBERS_AT_ONCE, OPERATION, Quantized, quantize, quantize_quickly

BLOCK = 64


def quantize_by_default(weight: Tensor, block: int = BLOCK, kind: str = "nf4") -> Quantized:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    operation = torch.ops.bitsandbytes.quantize_4bit.default
    quantized: Quantized = operation.redispatch(key, weight, block, kind, torch.uint8)
    return quantized


def assert_same(ours: Quantized, default: Quantized) -> None:
    for one, other in zip(ours, default, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other) or torch.equal(one.isnan(), other.isnan())
    assert torch.equal(ours[0], default[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [64, 128, 4096])
def test_random_weights(dtype: torch.dtype, block: int) -> None:
    generator = torch.Generator().manual_seed(block)
    weight = torch.randn(2 * NUMBERS_AT_ONCE // 512 + 16, 512, generator=generator).mul(0.05).to(dtype)
    assert_same(quantize(weight, block, "nf4", torch.uint8), quantize_by_default(weight, block))


def test_numbers_at_every_bound_and_beside_it() -> None:
    """Where a table would err: the bound itself, and the 50 numbers next to it on either side."""
    bounds, _ = _get_4bit_quantize_bounds("nf4", torch.device("cpu"))
    numbers, below, above = [bounds], bounds, bounds
    for _ in range(50):
        below, above = torch.nextafter(below, torch.tensor(-2.0)), torch.nextafter(above, torch.tensor(2.0))
        numbers += [below, above]
    near = torch.cat([*numbers, torch.tensor([-1.0, 0.0, -0.0, 1.0])])
    blocks = torch.zeros(-(-near.numel() // (BLOCK - 1)), BLOCK)
    blocks[:, 0] = 1.0  # the largest of each block, so that scaling changes nothing
    blocks[:, 1:] = torch.nn.functional.pad(near, (0, blocks[:, 1:].numel() - near.numel())).view(-1, BLOCK - 1)
    assert_same(quantize(blocks, BLOCK, "nf4", torch.uint8), quantize_by_default(blocks))


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(2, BLOCK),
        torch.full((2, BLOCK), 1e-42),
        torch.randn(3, 17),  # the last block is not full
        torch.tensor([[float("nan")] + [0.5] * (BLOCK - 1)]),
        torch.tensor([[float("inf")] + [0.5] * (BLOCK - 1)]),
    ],
    ids=["zeros", "denormal", "ragged", "nan", "inf"],
)
def test_odd_weights(weight: Tensor) -> None:
    assert_same(quantize(weight, BLOCK, "nf4", torch.uint8), quantize_by_default(weight))


def test_fp4_is_left_to_bitsandbytes() -> None:
    weight = torch.randn(4, BLOCK)
    assert_same(quantize(weight, BLOCK, "fp4", torch.uint8), quantize_by_default(weight, kind="fp4"))


def test_bitsandbytes_uses_it() -> None:
    quantize_quickly()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(OPERATION, "CPU")
    weight = torch.randn(16, BLOCK)
    ours = torch.ops.bitsandbytes.quantize_4bit(weight, BLOCK, "nf4", torch.uint8)
    assert_same(ours, quantize_by_default(weight))
