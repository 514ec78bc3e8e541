"""Attention, the products of adapters and the loss by functions in C++, on processors with tiles (AMX)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from finetune.elementwise import TILES_MULTIPLE

_P, _N, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
ARGUMENTS: dict[str, tuple[type, ...]] = {
    "attend": (*(_P,) * 5, *(_N,) * 4, _THREADS),
    "attend_backward": (*(_P,) * 8, *(_N,) * 4, _THREADS),
    "expected_row": (*(_P,) * 4, *(_N,) * 3, _THREADS),
    "project_low": (_P, _P, _P, *(_N,) * 4, _THREADS),
    "add_low_rank": (_P, _P, _P, *(_N,) * 4, _THREADS),
    "turned_product": (_P, _N, _P, _N, _P, ctypes.c_float, ctypes.c_int, _N, _N, _N, _THREADS),
}
"""Function of attention.cpp, head.cpp and low_rank.cpp → what it takes."""


class CompiledTiles:
    """Computes what `elementwise.Tiles` says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take the library that elementwise_library.py made, where `tiles_ready` says that it may be used."""
        self._calls = {name: typed(library[name], given) for name, given in ARGUMENTS.items()}

    def attend(self, q_HLE: Tensor, k_KLE: Tensor, v_KLE: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each query hears, and the logarithms of its softmax's sums."""
        heard_HLE, normalizer_HL = torch.empty_like(q_HLE), q_HLE.new_empty(q_HLE.shape[:2], dtype=torch.float32)
        tensors = (q_HLE, k_KLE, v_KLE, heard_HLE, normalizer_HL)
        self._calls["attend"](*_pointers(tensors), *_sizes(q_HLE, k_KLE))
        return heard_HLE, normalizer_HL

    def attend_backward(
        self, slope_HLE: Tensor, q_HLE: Tensor, k_KLE: Tensor, v_KLE: Tensor, normalizer_HL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values."""
        dq_HLE, dk_KLE, dv_KLE = torch.empty_like(q_HLE), torch.empty_like(k_KLE), torch.empty_like(v_KLE)
        tensors = (slope_HLE, q_HLE, k_KLE, v_KLE, normalizer_HL, dq_HLE, dk_KLE, dv_KLE)
        self._calls["attend_backward"](*_pointers(tensors), *_sizes(q_HLE, k_KLE))
        return dq_HLE, dk_KLE, dv_KLE

    def expect(self, hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's row that is expected, (N, D), and the log-sum-exp of the logits, (N,), in fp32."""
        hidden_MD = functional.pad(hidden_ND, (0, 0, 0, -len(hidden_ND) % TILES_MULTIPLE)).contiguous()
        mean_MD = torch.empty_like(hidden_MD, dtype=torch.float32)
        normalizer_M = mean_MD.new_empty(len(mean_MD))
        sizes = _multiples(*hidden_MD.shape), hidden_MD.shape[1], len(head_VD)
        assert hidden_MD.dtype == head_VD.dtype == torch.bfloat16
        tensors = (hidden_MD, head_VD, mean_MD, normalizer_M)
        self._calls["expected_row"](*_pointers(tensors), *sizes, torch.get_num_threads())
        return mean_MD[: len(hidden_ND)], normalizer_M[: len(hidden_ND)]

    def project_low(self, x_TW: Tensor, a_SW: Tensor, inputs: int) -> Tensor:
        """Return x Aᵀ, (T, S), and write it behind x."""
        assert x_TW.shape[1] == a_SW.shape[1] >= inputs + len(a_SW)
        low_TS = x_TW.new_empty(len(x_TW), len(a_SW))
        sizes = _multiples(len(x_TW), inputs), inputs, len(a_SW), x_TW.shape[1]
        self._calls["project_low"](*_pointers((x_TW, a_SW, low_TS)), *sizes, torch.get_num_threads())
        return low_TS

    def add_low_rank(self, slope_TW: Tensor, a_SW: Tensor, inputs: int) -> Tensor:
        """Return x + low A, (T, I), of x and low beside each other."""
        assert slope_TW.shape[1] == a_SW.shape[1] >= inputs + len(a_SW)
        dx_TI = slope_TW.new_empty(len(slope_TW), inputs)
        sizes = _multiples(len(slope_TW), inputs), inputs, len(a_SW), slope_TW.shape[1]
        self._calls["add_low_rank"](*_pointers((slope_TW, a_SW, dx_TI)), *sizes, torch.get_num_threads())
        return dx_TI

    def factor_gradient(self, low_TR: Tensor, x_TN: Tensor, scaling: float, *, across: bool) -> Tensor:
        """Return scaling · lowᵀ x in fp32, (R, N), or (N, R) where it is across."""
        _multiples(len(low_TR), x_TN.shape[1])
        assert len(low_TR) == len(x_TN)
        assert low_TR.dtype == x_TN.dtype == torch.bfloat16
        assert low_TR.stride(1) == x_TN.stride(1) == 1
        ranks, columns = low_TR.shape[1], x_TN.shape[1]
        out = x_TN.new_empty((columns, ranks) if across else (ranks, columns), dtype=torch.float32)
        rows = (low_TR.data_ptr(), low_TR.stride(0), x_TN.data_ptr(), x_TN.stride(0))
        sizes = (len(x_TN), ranks, columns, torch.get_num_threads())
        self._calls["turned_product"](*rows, out.data_ptr(), scaling, across, *sizes)
        return out


def typed(function: Callable[..., None], arguments: tuple[type, ...]) -> Callable[..., None]:
    """Say what a compiled function takes, and that it returns nothing."""
    function.argtypes, function.restype = arguments, None  # type: ignore[attr-defined]
    return function


def tiles_ready(library: ctypes.CDLL) -> bool:
    """Say whether the processor has tiles, the compiler knows them, and the system lets this process use them."""
    return bool(library.tiles_ready())


def _pointers(tensors: tuple[Tensor, ...]) -> list[int]:
    assert all(tensor.is_contiguous() and tensor.dtype in (torch.bfloat16, torch.float32) for tensor in tensors)
    return [tensor.data_ptr() for tensor in tensors]


def _sizes(q_HLE: Tensor, k_KLE: Tensor) -> tuple[int, int, int, int, int]:
    heads, length, width = q_HLE.shape
    return heads, heads // len(k_KLE), _multiples(length, width), width, torch.get_num_threads()


def _multiples(first: int, second: int) -> int:
    assert first % TILES_MULTIPLE == second % TILES_MULTIPLE == 0
    return first
