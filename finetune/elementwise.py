"""What of a decoder layer is no matrix product: norms, SwiGLU, rotation, the softmax of attention, packed weights.

Stated once, as what both implementations compute, and computed here with torch. `compiled_elementwise.py` computes the
same in one pass over memory each. Shapes: T tokens, D numbers a token, F inner ones, B documents of a group, L their
longest, E numbers a head; O outputs and I inputs of a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.model import frozen_weight


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm; its weight is frozen."""

    weight_D: Tensor
    epsilon: float


@dataclass(frozen=True)
class Rotation:
    """The angle of each token of a row (https://arxiv.org/abs/2104.09864), for the heads of all tokens alike."""

    cos_TE: Tensor
    sin_TE: Tensor
    """Negative in the first half of each head."""


@dataclass(frozen=True)
class Group:
    """Neighbouring documents of near-equal length, which are attended to in one product."""

    starts: Tensor
    """Of each in the row, (B,)"""
    lengths: Tensor
    longest: int
    """Its tokens, or more."""
    places: Tensor | None
    """Token → its place among B × `longest`, (t,); none where all have the same length."""
    rows: slice
    """All of them in the row."""

    @property
    def documents(self) -> int:
        """Count them."""
        return len(self.lengths)

    def rotate(self, rotation: Rotation | None) -> Rotation | None:
        """Cut the angles of its tokens out."""
        return None if rotation is None else Rotation(rotation.cos_TE[self.rows], rotation.sin_TE[self.rows])


@dataclass(frozen=True)
class Heads:
    """How a row of numbers is cut into heads: K key/value heads, and G query heads for each; for keys G is 1."""

    key_value: int
    per_key: int


@dataclass(frozen=True)
class Block:
    """Some queries of each document, and the keys up to the last of them."""

    first: int
    """The first query's number in its document."""
    end: int
    per_key: int
    """Query heads for each key/value head: a query is so many rows."""

    @property
    def queries(self) -> slice:
        """Cut the queries' rows out."""
        return slice(self.first * self.per_key, self.end * self.per_key)

    @property
    def keys(self) -> slice:
        """Cut the keys out that any of them may look at."""
        return slice(0, self.end)


TILES_MULTIPLE = 32
"""Tokens, inputs, outputs, and the numbers of a head come in multiples of it where tiles compute; ranks are even."""


class Tiles(Protocol):
    """Computes products in bfloat16 by the tiles of a processor, where single calls would read or copy too much.

    Attention is causal and within documents of one length, laid out by head: queries are (B·K·G, L, E), keys and values
    (B·K, L, E). R or S are ranks.
    """

    def attend(self, q_HLE: Tensor, k_KLE: Tensor, v_KLE: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each query hears, and the logarithms of its softmax's sums in fp32, (B·K·G, L)."""

    def attend_backward(
        self, slope_HLE: Tensor, q_HLE: Tensor, k_KLE: Tensor, v_KLE: Tensor, normalizer_HL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values."""

    def expect(self, hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `evaluation.token_loss.Expect` says."""

    def project_low(self, x_TW: Tensor, a_SW: Tensor, inputs: int) -> Tensor:
        """Return x Aᵀ, (T, S), and write it behind x, where there is room for it, as in the rows of A."""

    def add_low_rank(self, slope_TW: Tensor, a_SW: Tensor, inputs: int) -> Tensor:
        """Return x + low A, (T, I), of x and low that lie beside each other in (T, W)."""

    def factor_gradient(self, low_TR: Tensor, x_TN: Tensor, scaling: float, *, across: bool) -> Tensor:
        """Return scaling · lowᵀ x in fp32, (R, N), or (N, R) where it is across."""


class Elementwise(Protocol):
    """Computes those parts. What is said to be used up may be overwritten by the result."""

    tiles: Tiles | None
    """Attention, the products of adapters and the loss, on processors that have tiles."""

    def norm(self, x_TD: Tensor, norm: Norm, room: int) -> tuple[Tensor, Tensor]:
        """Return the normed tokens, with zeros behind each (T, D + room), and what each was multiplied with in fp32."""

    def norm_backward(
        self, slope_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, norm: Norm, beside_TD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the tokens, with `beside_TD` added, which came past the norm; and them normed again.

        `slope_TD` is used up.
        """

    def swiglu(self, gates_TG: Tensor, room: int) -> Tensor:
        """Return silu(gate) · up, with zeros behind each token (T, F + room); gate and up lie beside each other."""

    def swiglu_backward(self, slope_TF: Tensor, gates_TG: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of gate and up, (T, 2 F), and silu(gate) · up again; both tensors are used up."""

    def spread(self, x_TN: Tensor, group: Group, heads: Heads, rotation: Rotation | None) -> Tensor:
        """Turn a group's tokens and lay them out by key/value head: (B·K, L·G, E), zero where a document is shorter."""

    def gather(self, x_RQE: Tensor, group: Group, heads: Heads, rotation: Rotation | None, out_TN: Tensor) -> None:
        """Undo `spread`, into the group's rows of `out_TN`; for gradients."""

    def softmax(self, scores_RQK: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Return the causal softmax of the scores, which are used up, and the logarithms of its sums, (R, Q)."""

    def softmax_backward(
        self, slope_RQK: Tensor, scores_RQK: Tensor, normalizer_RQ: Tensor, block: Block
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the scores and the probabilities; scores and `slope_RQK`, theirs, are used up."""

    def unpack(self, layer: nn.Linear, out_OI: Tensor) -> None:
        """Write the weight of a frozen layer, which may be stored in four bits, into rows of a wider tensor."""


class TorchElementwise:
    """Computes them by calls of torch."""

    tiles: Tiles | None = None

    def norm(self, x_TD: Tensor, norm: Norm, room: int) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        size_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        scale_T1 = size_T1.square_().div_(x_TD.shape[1]).add_(norm.epsilon).rsqrt_()
        return _with_room(_weighed(_unit(x_TD, scale_T1), norm), room), scale_T1

    def norm_backward(
        self, slope_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, norm: Norm, beside_TD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        slope, unit_TD = (slope_TD * norm.weight_D).float(), _unit(x_TD, scale_T1)
        along_T1 = torch.linalg.vecdot(slope, unit_TD).div_(-unit_TD.shape[1])[:, None]
        dx_TD = slope.addcmul_(unit_TD, along_T1).mul_(scale_T1).to(x_TD.dtype)
        return dx_TD if beside_TD is None else dx_TD.add_(beside_TD), _weighed(unit_TD, norm)

    def swiglu(self, gates_TG: Tensor, room: int) -> Tensor:
        """Return what `Elementwise` says."""
        gate_TF, up_TF = gates_TG.chunk(2, 1)
        return _with_room(functional.silu(gate_TF).mul_(up_TF), room)

    def swiglu_backward(self, slope_TF: Tensor, gates_TG: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        gate_TF, up_TF = gates_TG.chunk(2, 1)
        act_TF, dup_TF = self.swiglu(gates_TG, 0), functional.silu(gate_TF).mul_(slope_TF)
        torch.ops.aten.silu_backward.grad_input(slope_TF.mul_(up_TF), gate_TF, grad_input=gate_TF)
        up_TF.copy_(dup_TF)
        return gates_TG, act_TF

    def spread(self, x_TN: Tensor, group: Group, heads: Heads, rotation: Rotation | None) -> Tensor:
        """Return what `Elementwise` says."""
        x_tHE = _turned(x_TN[group.rows], heads, group.rotate(rotation), 1)
        if group.places is not None:
            grid = x_tHE.new_zeros(group.documents * group.longest, *x_tHE.shape[1:])
            x_tHE = grid.index_copy_(0, group.places, x_tHE)
        grid = x_tHE.reshape(group.documents, group.longest, heads.key_value, heads.per_key, -1)
        return grid.transpose(1, 2).contiguous().view(group.documents * heads.key_value, -1, grid.shape[-1])

    def gather(self, x_RQE: Tensor, group: Group, heads: Heads, rotation: Rotation | None, out_TN: Tensor) -> None:
        """Do what `Elementwise` says."""
        grid = x_RQE.view(group.documents, heads.key_value, group.longest, heads.per_key, -1).transpose(1, 2)
        flat = grid.reshape(group.documents * group.longest, -1)
        slope_tN = flat if group.places is None else flat[group.places]
        out_TN[group.rows] = _turned(slope_tN, heads, group.rotate(rotation), -1).flatten(1)

    def softmax(self, scores_RQK: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        _hide_future(scores_RQK, block)
        normalizer_RQ = torch.logsumexp(scores_RQK.float(), -1)
        return _probabilities(scores_RQK, normalizer_RQ), normalizer_RQ

    def softmax_backward(
        self, slope_RQK: Tensor, scores_RQK: Tensor, normalizer_RQ: Tensor, block: Block
    ) -> tuple[Tensor, Tensor]:
        """Return what `Elementwise` says."""
        _hide_future(scores_RQK, block)
        p_RQK = _probabilities(scores_RQK, normalizer_RQ)
        return torch.ops.aten._softmax_backward_data(slope_RQK, p_RQK, -1, p_RQK.dtype), p_RQK

    def unpack(self, layer: nn.Linear, out_OI: Tensor) -> None:
        """Do what `Elementwise` says."""
        out_OI.copy_(frozen_weight(layer, out_OI.dtype))


def _weighed(unit_TD: Tensor, norm: Norm) -> Tensor:
    """Return normed tokens, of the size that they were trained with."""
    return unit_TD.to(norm.weight_D.dtype).mul_(norm.weight_D)


def _with_room(x_TD: Tensor, room: int) -> Tensor:
    return functional.pad(x_TD, (0, room))


def _probabilities(scores_RQK: Tensor, normalizer_RQ: Tensor) -> Tensor:
    return (scores_RQK - normalizer_RQ[..., None]).exp_().to(scores_RQK.dtype)


def _hide_future(scores_RQK: Tensor, block: Block) -> None:
    own = scores_RQK.view(len(scores_RQK), -1, block.per_key, block.end)[..., block.first :]
    own += _hidden_future(block.end - block.first, scores_RQK.dtype)[:, None]


def _unit(x_TD: Tensor, scale_T1: Tensor) -> Tensor:
    """Return the tokens at a mean square of 1, in fp32."""
    return x_TD * scale_T1 if x_TD.dtype == torch.float32 else x_TD.float().mul_(scale_T1)


def _turned(x_TN: Tensor, heads: Heads, rotation: Rotation | None, way: int) -> Tensor:
    """Turn the heads of tokens, (T, K·G, E); `way` is -1 for gradients, which are turned back."""
    x_THE = x_TN.reshape(len(x_TN), heads.key_value * heads.per_key, -1)
    if rotation is None:
        return x_THE
    turned = x_THE.roll(x_THE.shape[-1] // 2, -1)
    return (x_THE * rotation.cos_TE[:, None]).addcmul_(turned, rotation.sin_TE[:, None], value=way)


@lru_cache(maxsize=256)
def _hidden_future(length: int, dtype: torch.dtype) -> Tensor:
    """Return 0 where a query may look and −∞ where it may not, (queries, keys)."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
