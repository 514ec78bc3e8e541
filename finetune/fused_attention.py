"""Causal attention within documents, as batched products of their own with a backward pass written out.

Documents lie one after another in a row, longest first. Those of near-equal length are attended to together; nothing of
one is ever multiplied with another. Shapes: T tokens, B documents of a group, L their longest, K key/value heads,
G query heads for each of them, E numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

GROUPED = 0.75
"""Documents share a product where the shortest has this share of the longest's tokens …"""
SHORT = 64
"""… or where the longest has no more than so many: below it a call costs more than the padding."""
BLOCK = 256
"""Queries computed at a time: a block is multiplied with the keys up to its end, so that half of a long square is
never computed."""


@dataclass(frozen=True)
class Group:
    """Neighbouring documents of near-equal length."""

    start: int
    end: int
    """Their tokens in the row."""
    documents: int
    longest: int
    places: Tensor | None
    """Token → its place among `documents` × `longest`, (T,); none where all have the same length."""


@dataclass(frozen=True)
class Heads:
    """How a row of numbers is cut into heads."""

    key_value: int
    per_key: int
    """Query heads for each key/value head."""


@dataclass(frozen=True)
class Attended:
    """What the backward pass needs of one group."""

    q: Tensor
    """(B·K, G, L, E)"""
    k: Tensor
    """(B·K, L, E)"""
    v: Tensor


def group_documents(lengths: Sequence[int]) -> list[Group]:
    """Put documents, given longest first, into groups that share a product."""
    assert list(lengths) == sorted(lengths, reverse=True)
    groups: list[Group] = []
    first, start = 0, 0
    while first < len(lengths):
        longest = lengths[first]
        last = first
        while last < len(lengths) and (lengths[last] >= GROUPED * longest or longest <= SHORT):
            last += 1
        own = lengths[first:last]
        places = None
        if own[-1] != longest:
            places = torch.cat([torch.arange(length) + i * longest for i, length in enumerate(own)])
        groups.append(Group(start, start + sum(own), len(own), longest, places))
        first, start = last, start + sum(own)
    return groups


def attend(
    q_TN: Tensor, k_TN: Tensor, v_TN: Tensor, groups: Sequence[Group], heads: Heads
) -> tuple[Tensor, list[Attended]]:
    """Attend within each document, queries being scaled and turned, and keys turned: (T, K·G·E), and for backward."""
    out_TN = torch.empty_like(q_TN)
    kept = []
    for group in groups:
        rows = slice(group.start, group.end)
        q = _spread(q_TN[rows], group, heads.key_value, heads.per_key)
        k, v = (_spread(x[rows], group, heads.key_value, 1)[:, 0] for x in (k_TN, v_TN))
        parts = [torch.bmm(_probabilities(q, k, block, heads), v[:, : block.stop]) for block in _blocks(group.longest)]
        _gather(_joined(parts, heads), group, heads.key_value, out_TN[rows])
        kept.append(Attended(q, k, v))
    return out_TN, kept


def attend_backward(
    slope_TN: Tensor, kept: Sequence[Attended], groups: Sequence[Group], heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of scaled and rotated queries, rotated keys, and values."""
    width = slope_TN.shape[1] // heads.per_key
    dq_TN = torch.empty_like(slope_TN)
    dk_TN, dv_TN = slope_TN.new_empty(len(slope_TN), width), slope_TN.new_empty(len(slope_TN), width)
    for group, had in zip(groups, kept, strict=True):
        rows = slice(group.start, group.end)
        slope = _spread(slope_TN[rows], group, heads.key_value, heads.per_key)
        dq, dk, dv = _group_backward(slope, had, group, heads)
        _gather(dq, group, heads.key_value, dq_TN[rows])
        _gather(dk[:, None], group, heads.key_value, dk_TN[rows])
        _gather(dv[:, None], group, heads.key_value, dv_TN[rows])
    return dq_TN, dk_TN, dv_TN


def _group_backward(slope: Tensor, had: Attended, group: Group, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    parts: list[Tensor] = []
    dk = dv = slope.new_empty(0)
    for block in reversed(list(_blocks(group.longest))):  # the last one has all keys
        p = _probabilities(had.q, had.k, block, heads)
        seen, out_slope = slice(0, block.stop), _merged(slope[:, :, block])
        dp = torch.bmm(out_slope, had.v[:, seen].transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
        parts.insert(0, torch.bmm(ds, had.k[:, seen]))
        dv_seen, dk_seen = torch.bmm(p.mT, out_slope), torch.bmm(ds.mT, _merged(had.q[:, :, block]))
        if block.stop == group.longest:
            dk, dv = dk_seen, dv_seen
        else:
            dk[:, seen] += dk_seen
            dv[:, seen] += dv_seen
    return _joined(parts, heads), dk, dv


def _probabilities(q: Tensor, k: Tensor, block: slice, heads: Heads) -> Tensor:
    """Return the attention of a block's queries on the keys up to its end, (B·K, G·l, keys).

    It is computed anew in the backward pass: writing it to memory and reading it takes longer.
    """
    scores = torch.bmm(_merged(q[:, :, block]), k[:, : block.stop].mT)
    own = scores.view(len(scores), heads.per_key, -1, block.stop)[..., block.start :]
    own += _hidden_future(block.stop - block.start, scores.dtype)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=BLOCK)
def _hidden_future(length: int, dtype: torch.dtype) -> Tensor:
    """Return 0 where a query may look and −∞ where it may not, (queries, keys)."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


def _blocks(longest: int) -> Iterator[slice]:
    for start in range(0, longest, BLOCK):
        yield slice(start, min(start + BLOCK, longest))


def _joined(parts: Sequence[Tensor], heads: Heads) -> Tensor:
    """Put blocks of (B·K, G·l, E) one after another: (B·K, G, L, E)"""
    cut = [part.view(len(part), heads.per_key, -1, part.shape[-1]) for part in parts]
    return cut[0] if len(cut) == 1 else torch.cat(cut, 2)


def _merged(x: Tensor) -> Tensor:
    """(B·K, G, l, E) → (B·K, G·l, E)"""
    return x.reshape(len(x), -1, x.shape[-1])


def _spread(x_TN: Tensor, group: Group, key_value: int, per_key: int) -> Tensor:
    """Lay the tokens of a group out by head: (t, K·G·E) → (B·K, G, L, E), zero where a document is shorter."""
    if group.places is None:
        grid = x_TN
    else:
        grid = x_TN.new_zeros(group.documents * group.longest, x_TN.shape[1])
        grid.index_copy_(0, group.places, x_TN)
    heads = grid.view(group.documents, group.longest, key_value, per_key, -1).permute(0, 2, 3, 1, 4)
    return heads.reshape(group.documents * key_value, per_key, group.longest, -1)


def _gather(x: Tensor, group: Group, key_value: int, out_TN: Tensor) -> None:
    """Undo `_spread`, into `out_TN`."""
    per_key, width = x.shape[1], x.shape[-1]
    grid = x.view(group.documents, key_value, per_key, group.longest, width).permute(0, 3, 1, 2, 4)
    if group.places is None:
        out_TN.view(grid.shape).copy_(grid)
    else:
        flat = grid.reshape(group.documents * group.longest, -1)
        torch.index_select(flat, 0, group.places, out=out_TN)
