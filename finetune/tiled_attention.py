"""Attention within documents by the functions of attention.cpp, for processors with tiles of bfloat16 (AMX)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

EDGE = 32
"""Queries, keys and the numbers of a head come in multiples of it."""
_P, _N = ctypes.c_void_p, ctypes.c_int64
_SIZES = (_N, _N, _N, _N, ctypes.c_int)


class TiledAttention:
    """Computes what `elementwise.Tiles` says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take the library that elementwise_library.py made, where `tiles_ready` says that it may be used."""
        library.attend.argtypes, library.attend.restype = (*(_P,) * 5, *_SIZES), None
        library.attend_backward.argtypes, library.attend_backward.restype = (*(_P,) * 8, *_SIZES), None
        self._library = library

    def attend(self, q_HLE: Tensor, k_KLE: Tensor, v_KLE: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each query hears, and the logarithms of its softmax's sums."""
        heard_HLE, normalizer_HL = torch.empty_like(q_HLE), q_HLE.new_empty(q_HLE.shape[:2], dtype=torch.float32)
        tensors = (q_HLE, k_KLE, v_KLE, heard_HLE, normalizer_HL)
        self._library.attend(*_pointers(tensors), *_sizes(q_HLE, k_KLE))
        return heard_HLE, normalizer_HL

    def attend_backward(
        self, slope_HLE: Tensor, q_HLE: Tensor, k_KLE: Tensor, v_KLE: Tensor, normalizer_HL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values."""
        dq_HLE, dk_KLE, dv_KLE = torch.empty_like(q_HLE), torch.empty_like(k_KLE), torch.empty_like(v_KLE)
        tensors = (slope_HLE, q_HLE, k_KLE, v_KLE, normalizer_HL, dq_HLE, dk_KLE, dv_KLE)
        self._library.attend_backward(*_pointers(tensors), *_sizes(q_HLE, k_KLE))
        return dq_HLE, dk_KLE, dv_KLE


def tiles_ready(library: ctypes.CDLL) -> bool:
    """Say whether the processor has tiles, the compiler knows them, and the system lets this process use them."""
    return bool(library.tiles_ready())


def _pointers(tensors: tuple[Tensor, ...]) -> list[int]:
    assert all(tensor.is_contiguous() and tensor.dtype in (torch.bfloat16, torch.float32) for tensor in tensors)
    return [tensor.data_ptr() for tensor in tensors]


def _sizes(q_HLE: Tensor, k_KLE: Tensor) -> tuple[int, int, int, int, int]:
    heads, length, width = q_HLE.shape
    assert q_HLE.dtype == k_KLE.dtype == torch.bfloat16
    assert length % EDGE == width % EDGE == 0
    return heads, heads // len(k_KLE), length, width, torch.get_num_threads()
