"""The parts of a layer that are no matrix products, by the functions of elementwise.cpp: one pass over memory each.

elementwise_library.py makes a library of them; torch.compile took 20 s for the same and 2 s in each process after that
(docs/log.md).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.model import frozen_weight, packed_weight
from finetune.compiled_tiles import CompiledTiles, tiles_ready, typed
from finetune.elementwise import Block, Group, Heads, Norm, Rotation, Tiles

_P, _N, _F, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
ARGUMENTS: dict[str, tuple[type, ...]] = {
    "norm": (_P, _P, _P, _P, _N, _N, _N, _F, _THREADS),
    "norm_backward": (_P, _P, _P, _P, _P, _P, _N, _N, _THREADS),
    "swiglu": (_P, _P, _N, _N, _N, _THREADS),
    "swiglu_backward": (_P, _P, _N, _N, _THREADS),
    "spread": (_P, _P, _P, _P, _P, _P, _N, _N, _N, _N, _N, _N, _THREADS),
    "gather": (_P, _P, _P, _P, _P, _P, _N, _N, _N, _N, _N, _N, _THREADS),
    "softmax": (_P, _P, _N, _N, _N, _N, _N, _THREADS),
    "softmax_backward": (_P, _P, _P, _N, _N, _N, _N, _N, _THREADS),
    "unpack": (_P, _P, _P, _P, _P, _P, _N, _N, _N, _N, _N, _F, _THREADS),
}
"""Function of elementwise.cpp → what it takes."""
AT_ONCE = 16
"""Weights that are unpacked in one step."""


class CompiledElementwise:
    """Computes what `Elementwise` says, on contiguous tensors of one type, float32 or bfloat16."""

    def __init__(self, library: Path) -> None:
        """Load what elementwise_library.py made.

        Raises:
            OSError: it cannot be loaded here.
        """
        for threads in _threads_of_torch():  # the library's calls of OpenMP are to reach the pool that torch has
            ctypes.CDLL(threads, mode=ctypes.RTLD_GLOBAL)
        loaded = ctypes.CDLL(str(library))
        self.tiles: Tiles | None = CompiledTiles(loaded) if tiles_ready(loaded) else None
        self._calls = {
            dtype: {name: typed(loaded[f"{name}_{suffix}"], given) for name, given in ARGUMENTS.items()}
            for dtype, suffix in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16"))
        }

    def norm(self, x_TD: Tensor, norm: Norm, room: int) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        assert norm.weight_D.dtype == x_TD.dtype
        T, D = x_TD.shape
        y_TW, scale_T1 = x_TD.new_empty(T, D + room), x_TD.new_empty(T, 1, dtype=torch.float32)
        self._call("norm", (x_TD, norm.weight_D, y_TW, scale_T1), (T, D, D + room, norm.epsilon))
        return y_TW, scale_T1

    def norm_backward(
        self, slope_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, norm: Norm, beside_TD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        dx_TD = torch.empty_like(x_TD)
        self._call("norm_backward", (slope_TD, x_TD, norm.weight_D, scale_T1, beside_TD, dx_TD), x_TD.shape)
        return dx_TD, slope_TD

    def swiglu(self, gates_TG: Tensor, room: int) -> Tensor:
        """Return what `Elementwise` says."""
        T, F = len(gates_TG), gates_TG.shape[1] // 2
        act_TW = gates_TG.new_empty(T, F + room)
        self._call("swiglu", (gates_TG, act_TW), (T, F, F + room))
        return act_TW

    def swiglu_backward(self, slope_TF: Tensor, gates_TG: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        self._call("swiglu_backward", (gates_TG, slope_TF), slope_TF.shape)
        return gates_TG, slope_TF

    def spread(self, x_TN: Tensor, group: Group, heads: Heads, rotation: Rotation | None) -> Tensor:
        """Return what `Elementwise` says."""
        E = x_TN.shape[1] // (heads.key_value * heads.per_key)
        out_RQE = x_TN.new_empty(group.documents * heads.key_value, group.longest * heads.per_key, E)
        self._lay_out("spread", x_TN, out_RQE, (group, heads, rotation), x_TN.stride(0))
        return out_RQE

    def gather(self, x_RQE: Tensor, group: Group, heads: Heads, rotation: Rotation | None, out_TN: Tensor) -> None:
        """Do what `Elementwise` says."""
        self._lay_out("gather", x_RQE, out_TN, (group, heads, rotation), out_TN.stride(0))

    def softmax(self, scores_RQK: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        normalizer_RQ = scores_RQK.new_empty(scores_RQK.shape[:2], dtype=torch.float32)
        self._call("softmax", (scores_RQK, normalizer_RQ), _rows(normalizer_RQ, block))
        return scores_RQK, normalizer_RQ

    def softmax_backward(
        self, slope_RQK: Tensor, scores_RQK: Tensor, normalizer_RQ: Tensor, block: Block
    ) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        self._call("softmax_backward", (scores_RQK, slope_RQK, normalizer_RQ), _rows(normalizer_RQ, block))
        return slope_RQK, scores_RQK

    def unpack(self, layer: nn.Linear, out_OI: Tensor) -> None:
        """Do what `Elementwise` says."""
        packed = packed_weight(layer)
        outputs, inputs = out_OI.shape
        if packed is None or inputs % packed.block or packed.block % AT_ONCE:
            out_OI.copy_(frozen_weight(layer, out_OI.dtype))
            return
        tensors = (out_OI, packed.pairs, packed.levels, packed.scales, packed.scale_bytes, packed.scale_levels)
        sizes = (outputs, inputs, out_OI.stride(0), packed.block, packed.blocks, packed.offset)
        self._call("unpack", tensors, sizes)

    def _lay_out(
        self, name: str, x: Tensor, out: Tensor, how: tuple[Group, Heads, Rotation | None], apart: int
    ) -> None:
        group, heads, rotation = how
        angles = (None, None) if rotation is None else (rotation.cos_TE, rotation.sin_TE)
        width = (x if name == "gather" else out).shape[-1]
        sizes = (group.documents, heads.key_value, group.longest, heads.per_key, width, apart)
        self._call(name, (x, *angles, out, group.starts, group.lengths), sizes)

    def _call(self, name: str, tensors: tuple[Tensor | None, ...], sizes: tuple[float, ...]) -> None:
        first = tensors[0]
        assert first is not None
        assert all(tensor is None or tensor.stride(-1) == 1 for tensor in tensors)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        self._calls[first.dtype][name](*pointers, *sizes, torch.get_num_threads())


def _threads_of_torch() -> set[str]:
    """Return the files of the OpenMP library that torch brought into this process."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {line.split(maxsplit=5)[5] for line in mapped if "libgomp" in line}


def _rows(normalizer_RQ: Tensor, block: Block) -> tuple[int, int, int, int, int]:
    return normalizer_RQ.numel(), block.end - block.first, block.per_key, block.first, block.end
