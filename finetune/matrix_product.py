"""Matrix products on a CPU, on all its threads."""

from __future__ import annotations

import torch
from torch import Tensor

FEW_OUTPUTS = 1024
"""With more a product is several blocks, however many rows it has."""
MOST_ROWS = 512
DEEP, APART = 2048, 64
"""More inputs than the first are summed in two halves, if multiples of the second: more are one block again."""


def product(x_TI: Tensor, weight_IO: Tensor) -> Tensor:
    """Return x W, (T, O), by rows cut where torch would leave one of two threads idle.

    oneDNN 3.12 (`brg_matmul`, bf16 on AMX) cuts a product among threads in blocks so large that with two threads one of
    600 to 1,100 rows and few outputs is a single block. The limits are measured (docs/log.md); with three threads or
    more there is nothing to mend.
    """
    rows = _rows_at_once(x_TI, weight_IO.shape[1])
    if len(x_TI) <= rows:
        return x_TI @ weight_IO
    out_TO = x_TI.new_empty(len(x_TI), weight_IO.shape[1])
    half = x_TI.shape[1] // 2
    for x, out in zip(x_TI.split(rows), out_TO.split(rows), strict=True):
        if 2 * half > DEEP and half % APART == 0:
            torch.mm(x[:, :half], weight_IO[:half], out=out)
            out.addmm_(x[:, half:], weight_IO[half:])
        else:
            torch.mm(x, weight_IO, out=out)
    return out_TO


def _rows_at_once(x_TI: Tensor, outputs: int) -> int:
    if x_TI.dtype != torch.bfloat16 or outputs > FEW_OUTPUTS or torch.get_num_threads() != 2:
        return len(x_TI)
    return MOST_ROWS
