"""Which rows go where: pure functions of the rows' own keys, never of their order or of a random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def split_by_fraction(keys: Iterable[str], fraction: float, salt: str) -> set[int]:
    """Return the indices of the rows on the smaller side of a split.

    Equal keys stay together. Whether a key is in depends on `salt` and the key alone: rows added later move
    nothing, and the run's seed plays no part, so that runs with different seeds are scored on the same rows.
    """
    boundary = int(fraction * 2**256)
    return {index for index, key in enumerate(keys) if int.from_bytes(_digest(salt, key)) < boundary}


def draw(keys: Iterable[str], limit: int, seed: int) -> list[int]:
    """Return the indices of `limit` rows, ascending: those whose key has the smallest hash under this seed.

    The same rows are drawn in whatever order they come; of rows with equal keys the earlier are taken first.
    """
    salt = str(seed)
    digests = bytearray()
    for key in keys:
        digests += _digest(salt, key)
    columns = np.frombuffer(digests, ">u8").reshape(-1, 4).T
    # By the first column, then by the next ones; rows that are equal in all stay in their order.
    smallest = np.lexsort(columns[::-1])[:limit]
    drawn: list[int] = np.sort(smallest).tolist()
    return drawn


def _digest(salt: str, key: str) -> bytes:
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    return hashlib.sha256(f"{len(salt)}:{salt}{key}".encode()).digest()
