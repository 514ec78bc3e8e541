"""Looks at the first batches as the trainer gets them: what is learned of them is what the data stage has written.

The masks of examples are checked before they are stored; a fault in putting them together would not show there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from torch import Tensor

from evaluation.rendering import IGNORE, Example
from finetune.errors import TrainingStopped

CHECKED_BATCHES = 32
"""Micro-batches of a process that are looked at before the first step."""

Batch = Mapping[str, Tensor]


def check_batches(
    batches: Iterable[Batch], plan: Sequence[Sequence[int]], example: Callable[[int], Example], packed: bool
) -> None:
    """Compare the first micro-batches with the examples that the plan puts into them.

    Raises:
        TrainingStopped: a token, a label, or where a packed example begins is not what it should be.
    """
    first = zip(plan[:CHECKED_BATCHES], islice(batches, CHECKED_BATCHES), strict=True)
    for number, (indices, batch) in enumerate(first, start=1):
        examples = [example(index) for index in indices]
        fault = _fault_of_packed(batch, examples) if packed else _fault_of_padded(batch, examples)
        if fault:
            raise TrainingStopped(
                f"micro-batch {number} is not what the data stage has written: {fault}",
                where="training",
                hint="nothing was trained; please report it with the recipe and the versions",
            )


def _fault_of_padded(batch: Batch, examples: Sequence[Example]) -> str:
    rows = [batch[name].tolist() for name in ("input_ids", "labels", "attention_mask")]
    if any(len(row) != len(examples) for row in rows):
        return f"it has {len(rows[0])} rows for {len(examples)} examples"
    for example, ids, labels, mask in zip(examples, *rows, strict=True):
        length = len(example.input_ids)
        if fault := _fault(example, ids[:length], labels[:length]):
            return fault
        if any(label != IGNORE for label in labels[length:]):
            return "padding is trained on"
        if mask != [1] * length + [0] * (len(ids) - length):
            return "the attention mask does not end with the example"
    return ""


def _fault_of_packed(batch: Batch, examples: Sequence[Example]) -> str:
    [ids], [labels], [positions] = (batch[name].tolist() for name in ("input_ids", "labels", "position_ids"))
    start = 0
    for example in examples:
        stop = start + len(example.input_ids)
        if fault := _fault(example, ids[start:stop], labels[start:stop]):
            return fault
        if labels[start] != IGNORE:
            return "the first token of an example is learned from the example before it"
        if positions[start:stop] != list(range(stop - start)):
            return "positions do not begin anew with each example"
        start = stop
    return "" if start == len(ids) == len(labels) else f"it has {len(ids)} tokens for {start}"


def _fault(example: Example, ids: list[int], labels: list[int]) -> str:
    """Say what is wrong; the first label plays no part, since nothing comes before it."""
    if tuple(ids) != example.input_ids:
        return "its tokens are others"
    wrong = sum(has != should for has, should in zip(labels[1:], example.labels[1:], strict=True))
    return f"{wrong} of {len(labels)} labels are others" if wrong else ""
