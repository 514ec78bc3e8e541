"""Causal attention within documents, its backward pass written out: by tiles of the processor or by batched products.

Documents lie one after another in a row, longest first. Those of near-equal length are attended to together; nothing of
one is ever multiplied with another. Shapes: T tokens, B documents of a group, L their longest, K key/value heads,
G query heads for each of them, E numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.elementwise import Block, Elementwise, Group, Heads, Rotation, Tiles

GROUPED = 0.75
"""Documents share a product where the shortest has this share of the longest's tokens …"""
SHORT = 64
"""… or where the longest has no more than so many: below it a call costs more than the padding."""
BLOCK = 256
"""Queries computed at a time: a block is multiplied with the keys up to its end, so that half of a long square is
never computed."""


@dataclass(frozen=True)
class Row:
    """Where the documents of a row lie, and how each token is turned."""

    groups: Sequence[Group]
    queries: Rotation
    """Scales them as well, by 1 / √E."""
    keys: Rotation


@dataclass(frozen=True)
class Attended:
    """What the backward pass needs of one group."""

    q: Tensor
    """(B·K, L·G, E); for tiles (B·K·G, L, E)"""
    k: Tensor
    """(B·K, L, E)"""
    v: Tensor
    normalizers: list[Tensor]
    """Of the softmax of each block, (B·K, l·G); of tiles there is one, (B·K·G, L)."""


def group_documents(lengths: Sequence[int], multiple: int = 1) -> list[Group]:
    """Put documents, given longest first, into groups that share a product, each as long as a multiple."""
    assert list(lengths) == sorted(lengths, reverse=True)
    groups: list[Group] = []
    first, start = 0, 0
    while first < len(lengths):
        longest = lengths[first] + -lengths[first] % multiple
        last = first
        while last < len(lengths) and (lengths[last] >= GROUPED * lengths[first] or longest <= SHORT):
            last += 1
        own = torch.tensor(lengths[first:last])
        end = start + int(own.sum())
        places = None
        if own[-1] != longest:
            places = torch.cat([torch.arange(length) + i * longest for i, length in enumerate(own.tolist())])
        groups.append(Group(start + own.cumsum(0) - own, own, longest, places, slice(start, end)))
        first, start = last, end
    return groups


@dataclass(frozen=True)
class Attention:
    """Attends within each document of a row; queries, keys and values of a token lie beside each other."""

    heads: Heads
    elementwise: Elementwise
    tiles: Tiles | None

    def forward(self, qkv_TN: Tensor, row: Row, room: int) -> tuple[Tensor, list[Attended]]:
        """Return what each token hears, with zeros behind it (T, K·G·E + room), and what the backward pass needs."""
        q_TN, k_TN, v_TN = self._parted(qkv_TN)
        heard_TW = qkv_TN.new_zeros(len(qkv_TN), q_TN.shape[1] + room)
        kept = []
        for group in row.groups:
            q = self.elementwise.spread(q_TN, group, self._queries, row.queries)
            k = self.elementwise.spread(k_TN, group, self._single, row.keys)
            v = self.elementwise.spread(v_TN, group, self._single, None)
            heard, normalizers = self._group_forward(q, k, v, group)
            self.elementwise.gather(heard, group, self._queries, None, heard_TW[:, : q_TN.shape[1]])
            kept.append(Attended(q, k, v, normalizers))
        return heard_TW, kept

    def backward(self, slope_TN: Tensor, kept: Sequence[Attended], row: Row) -> Tensor:
        """Return the gradients of queries, keys and values, beside each other."""
        keys = slope_TN.shape[1] // self.heads.per_key
        dqkv_TN = slope_TN.new_empty(len(slope_TN), slope_TN.shape[1] + 2 * keys)
        dq_TN, dk_TN, dv_TN = self._parted(dqkv_TN)
        dqkv_TN[row.groups[-1].rows.stop :] = 0
        for group, had in zip(row.groups, kept, strict=True):
            slope = self.elementwise.spread(slope_TN, group, self._queries, None)
            dq, dk, dv = self._group_backward(slope, had, group)
            self.elementwise.gather(dq, group, self._queries, row.queries, dq_TN)
            self.elementwise.gather(dk, group, self._single, row.keys, dk_TN)
            self.elementwise.gather(dv, group, self._single, None, dv_TN)
        return dqkv_TN

    def _group_forward(self, q: Tensor, k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, list[Tensor]]:
        if self.tiles is not None:
            heard, normalizer = self.tiles.attend(q, k, v)
            return heard, [normalizer]
        parts, normalizers = [], []
        for block in self._blocks(group):
            p, normalizer = self.elementwise.softmax(_scores(q, k, block), block)
            parts.append(torch.bmm(p, v[:, block.keys]))
            normalizers.append(normalizer)
        return _joined(parts), normalizers

    def _group_backward(self, slope: Tensor, had: Attended, group: Group) -> tuple[Tensor, Tensor, Tensor]:
        """Scores are computed anew: writing the probabilities to memory and reading them takes longer."""
        if self.tiles is not None:
            return self.tiles.attend_backward(slope, had.q, had.k, had.v, had.normalizers[0])
        parts: list[Tensor] = []
        dk = dv = slope.new_empty(0)
        for block, normalizer in reversed(list(zip(self._blocks(group), had.normalizers, strict=True))):
            dp = torch.bmm(slope[:, block.queries], had.v[:, block.keys].mT)
            scores = _scores(had.q, had.k, block)
            ds, p = self.elementwise.softmax_backward(dp, scores, normalizer, block)
            parts.append(torch.bmm(ds, had.k[:, block.keys]))
            dv_seen, dk_seen = torch.bmm(p.mT, slope[:, block.queries]), torch.bmm(ds.mT, had.q[:, block.queries])
            if block.end == group.longest:  # the last one, which has all keys, comes first
                dk, dv = dk_seen, dv_seen
            else:
                dk[:, block.keys] += dk_seen
                dv[:, block.keys] += dv_seen
        return _joined(parts[::-1]), dk, dv

    def _parted(self, qkv_TN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = qkv_TN.shape[1] // (self.heads.per_key + 2)
        q_TN, k_TN, v_TN = qkv_TN.split([keys * self.heads.per_key, keys, keys], dim=1)
        return q_TN, k_TN, v_TN

    @property
    def _queries(self) -> Heads:
        return self.heads if self.tiles is None else Heads(self.heads.key_value * self.heads.per_key, 1)

    @property
    def _single(self) -> Heads:
        return Heads(self.heads.key_value, 1)

    def _blocks(self, group: Group) -> Iterator[Block]:
        for start in range(0, group.longest, BLOCK):
            yield Block(start, min(start + BLOCK, group.longest), self.heads.per_key)


def _scores(q: Tensor, k: Tensor, block: Block) -> Tensor:
    """Return the scores of a block's queries on the keys up to its end, (B·K, l·G, keys)."""
    return torch.bmm(q[:, block.queries], k[:, block.keys].mT)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
