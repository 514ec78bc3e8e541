"""Quantizes weights to NF4 on a processor as bitsandbytes does, to the byte, in a small part of the time.

bitsandbytes 0.50.2 has no kernel of its own for it on processors: its default one looks for each number's level with a
binary search (`torch.bucketize`), which was most of what loading a model took. Here the numbers between -1 and 1 are
parted into cells, and a table knows the level of each cell. A cell that holds a bound between two levels is marked,
and its numbers alone are searched for. Finding the cell never puts a larger number into a lower cell, so a number in
another cell than a bound lies on the side of it that its cell does.
"""

from __future__ import annotations

from functools import cache

import torch
from bitsandbytes._ops import register_kernel
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
from torch import Tensor

OPERATION = "bitsandbytes::quantize_4bit"
NUMBERS_AT_ONCE = 1 << 16
"""256 KiB of float32, which a core's second cache holds."""
CELLS = 1 << 14
"""On either side of zero; the table is then as large as a core's first cache."""
SEARCHED = 255
"""Marks a cell in which numbers have one of two levels."""

Quantized = tuple[Tensor, Tensor]
"""Two levels in each byte, and the largest absolute value of each block."""


@cache
def quantize_quickly() -> None:
    """Have bitsandbytes quantize with this module on processors, unless it has a kernel of its own there."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(OPERATION, "CPU"):
        register_kernel(OPERATION, "cpu")(quantize)


def quantize(weight: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> Quantized:
    """Quantize a weight; takes and returns what bitsandbytes' own kernels do.

    What this is not made for goes to the default kernel: FP4, other storage than bytes, blocks that do not fit into
    the weight or into a piece, and numbers that are not finite.
    """
    for_this = quant_type == "nf4" and quant_storage == torch.uint8
    if for_this and weight.numel() % blocksize == 0 and NUMBERS_AT_ONCE % blocksize == 0:
        pieces = weight.reshape(-1, blocksize).split(NUMBERS_AT_ONCE // blocksize)
        largest = [piece.float().abs().amax(dim=-1) for piece in pieces]
        if all(torch.isfinite(one).all() for one in largest):
            packed = [_quantize_piece(piece, one) for piece, one in zip(pieces, largest, strict=True)]
            return torch.cat(packed).unsqueeze(1), torch.cat(largest)
    default = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    operation = torch.ops.bitsandbytes.quantize_4bit.default
    quantized: Quantized = operation.redispatch(default, weight, blocksize, quant_type, quant_storage)
    return quantized


def _quantize_piece(blocks: Tensor, largest: Tensor) -> Tensor:
    """Quantize blocks (rows) of a weight; scaling is done in the same operations as in bitsandbytes' default kernel."""
    scaled = (blocks.float() * (1.0 / largest.clamp(min=1e-38)).view(-1, 1)).clamp_(-1, 1).reshape(-1)
    bounds, level_of_cell = _table()
    levels = torch.index_select(level_of_cell, 0, _cells(scaled))
    searched = (levels == SEARCHED).nonzero().squeeze(1)
    levels[searched] = torch.bucketize(scaled[searched], bounds).to(torch.uint8)
    return (levels[::2] << 4) | levels[1::2]


def _cells(numbers: Tensor) -> Tensor:
    """Return the cell of each number from -1 to 1."""
    return (numbers * CELLS).add_(CELLS).to(torch.int32)


@cache
def _table() -> tuple[Tensor, Tensor]:
    """Return the bounds between the levels of NF4, the middles between two neighbours, and the level of each cell."""
    bounds, _ = _get_4bit_quantize_bounds("nf4", torch.device("cpu"))
    cells = _cells(bounds)
    levels = torch.bucketize(torch.arange(2 * CELLS + 1, dtype=torch.int32), cells).to(torch.uint8)
    levels[cells] = SEARCHED
    return bounds, levels
