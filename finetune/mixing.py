"""How often each training row is used: sources mixed by weight, classes evened out.

Which rows are drawn or repeated depends on their keys and the seed, never on their order. The total stays what it was
where sources are mixed: a source with more rows than its share is drawn from, one with fewer is used several times
over, every row equally often up to one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Literal

from finetune.errors import DataError
from finetune.splits import draw


def mix(
    keys: Sequence[Sequence[str]], weights: Sequence[float] | None, temperature: float | None, seed: int
) -> list[list[int]]:
    """Return each source's positions, repeated ones several times: whole rounds in order, then what is drawn.

    Together they are as many as there are rows, divided by `weights`, or by size^(1/temperature) where there are none;
    each source is within one row of its share. Without either, every row is used once.

    Raises:
        DataError: a source has a weight and no rows, or a share of less than one row.
    """
    sizes = [len(rows) for rows in keys]
    if weights is not None:
        counted = [float(weight) for weight in weights]
    else:
        counted = [size ** (1 / temperature) if temperature and size else float(size) for size in sizes]
    wanted = _divide(sum(sizes), counted)
    for source, (size, count) in enumerate(zip(sizes, wanted, strict=True)):
        if counted[source] and not (size and count):
            _refuse(source, size, weights is not None)
    return [_used(rows, count, seed) for rows, count in zip(keys, wanted, strict=True)]


def balance(
    labels: Sequence[str],
    keys: Sequence[str],
    method: Literal["repeat", "draw"],
    maximum_ratio: float,
    seed: int,
) -> list[int]:
    """Return positions of rows such that the largest class has at most `maximum_ratio` times the rows of the smallest.

    `repeat` keeps every row and adds rows of small classes behind them; `draw` takes rows of large classes out. Classes
    that are within the ratio already are left as they are.
    """
    if not labels:
        return []
    classes: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        classes.setdefault(label, []).append(position)
    sizes = [len(rows) for rows in classes.values()]
    # As written in the recipe: 1.1 is eleven tenths, which the binary number is not quite.
    ratio = Fraction(str(maximum_ratio))
    least, most = math.ceil(max(sizes) / ratio), math.floor(min(sizes) * ratio)
    chosen: list[int] = []
    for rows in classes.values():
        count = max(len(rows), least) if method == "repeat" else min(len(rows), most)
        chosen += (rows[i] for i in _used([keys[row] for row in rows], count, seed))
    if method == "draw":
        return sorted(chosen)
    repeats = Counter(chosen)
    repeats.subtract(range(len(labels)))
    return [*range(len(labels)), *sorted(repeats.elements())]


def _divide(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a number into whole shares by weight; what rounding leaves goes to the largest remainders."""
    whole = math.fsum(weights)
    shares = [total * (weight / whole) for weight in weights] if whole else [0.0] * len(weights)
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _used(keys: Sequence[str], count: int, seed: int) -> list[int]:
    """Use every row equally often, and some once more: those that are drawn."""
    if not count:
        return []
    rounds, rest = divmod(count, len(keys))
    whole = list(range(len(keys))) * rounds
    return [*whole, *draw(_numbered(keys), rest, seed)] if rest else whole


def _numbered(keys: Iterable[str]) -> Iterator[str]:
    """Tell rows with equal keys apart, so that each is as likely to be drawn as any other row."""
    seen: Counter[str] = Counter()
    for key in keys:
        seen[key] += 1
        # A name of its own: `limit` draws by the plain key, and what it kept is not to be drawn first here as well.
        yield f"mixing {seen[key]} {key}"


def _refuse(source: int, size: int, by_weight: bool) -> None:
    if not size:
        what, hint = "no rows of it are left for training, so it cannot have a share", "delete the source"
    else:
        what, hint = "its share is less than one row", "raise its share, or delete the source"
    raise DataError(what, where=f"data.train.{source}.weight" if by_weight else f"data.train.{source}", hint=hint)
