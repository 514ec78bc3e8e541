"""What the trainer is given is compared with what was written, whatever way batches were put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_base
from tiny_training import tiny_examples, tiny_recipe, trained
from torch import Tensor

from evaluation.batching import pad_examples
from evaluation.rendering import IGNORE, Example
from finetune.batch_check import CHECKED_BATCHES, check_batches
from finetune.errors import TrainingStopped
from finetune.packing import pack_examples
from finetune.training_trainer import _Padding

EXAMPLES = [Example((5, 6, 7, 2), (IGNORE, IGNORE, 7, 2)), Example((8, 9, 2), (IGNORE, 9, 2))]
PADDING = 2
Batch = dict[str, Tensor]
Fault = Callable[[Batch], object]


def padded() -> Batch:
    ids, labels, mask = pad_examples(EXAMPLES, PADDING)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def check(batch: Batch, packed: bool) -> None:
    check_batches([batch], [[0, 1]], EXAMPLES.__getitem__, packed)


IN_BOTH: dict[str, Fault] = {
    "masked by the id of the padding": lambda b: b["labels"].masked_fill_(b["input_ids"] == PADDING, IGNORE),
    "labels shifted by one": lambda b: b["labels"].copy_(b["labels"].roll(1, -1)),
    "prompt trained": lambda b: b["labels"].copy_(b["input_ids"]),
    "last label dropped": lambda b: (
        b["labels"][..., -1].fill_(IGNORE) if b["labels"][0, -1] != IGNORE else b["labels"][1, 2].fill_(IGNORE)
    ),
    "another token": lambda b: b["input_ids"][0, 1].fill_(9),
}
IN_PADDED: dict[str, Fault] = {
    "padding trained": lambda b: b["labels"][1, 3].fill_(PADDING),
    "padding seen": lambda b: b["attention_mask"].fill_(1),
    "end not seen": lambda b: b["attention_mask"][0, 3].fill_(0),
    "padded on the left": lambda b: [b[name].copy_(b[name].roll(1, -1)) for name in b],
    "rows in another order": lambda b: [b[name].copy_(b[name].flip(0)) for name in b],
}
IN_PACKED: dict[str, Fault] = {
    "learned across the border": lambda b: b["labels"][0, 4].fill_(8),
    "positions go on": lambda b: b["position_ids"].copy_(torch.arange(7)[None]),
    "examples in another order": lambda b: b.update(pack_examples(EXAMPLES[::-1])),
    "an example left out": lambda b: b.update(pack_examples([*EXAMPLES, EXAMPLES[0]])),
}


def test_batches_as_they_are_made_pass() -> None:
    check(padded(), packed=False)
    check(dict(pack_examples(EXAMPLES)), packed=True)


@pytest.mark.parametrize("fault", (IN_BOTH | IN_PADDED).values(), ids=(IN_BOTH | IN_PADDED).keys())
def test_every_fault_of_a_padded_batch_is_found(fault: Fault) -> None:
    batch = padded()
    fault(batch)
    with pytest.raises(TrainingStopped, match="micro-batch 1 is not what the data stage has written"):
        check(batch, packed=False)


@pytest.mark.parametrize("fault", (IN_BOTH | IN_PACKED).values(), ids=(IN_BOTH | IN_PACKED).keys())
def test_every_fault_of_a_packed_batch_is_found(fault: Fault) -> None:
    batch = dict(pack_examples(EXAMPLES))
    fault(batch)
    with pytest.raises(TrainingStopped, match="micro-batch 1 is not what the data stage has written"):
        check(batch, packed=True)


def test_no_more_is_looked_at_than_the_first_batches() -> None:
    seen: list[int] = []

    def example(index: int) -> Example:
        seen.append(index)
        return EXAMPLES[0]

    batch = dict(pack_examples(EXAMPLES[:1]))
    check_batches([batch] * 100, [[i] for i in range(100)], example, True)
    assert seen == list(range(CHECKED_BATCHES))


def test_nothing_is_trained_with_a_collator_that_masks_by_the_id_of_the_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _Padding.__call__

    def masking(self: _Padding, rows: list[dict[str, list[int]]]) -> Batch:
        batch = plain(self, rows)
        return batch | {"labels": batch["labels"].masked_fill(batch["input_ids"] == self.padding, IGNORE)}

    monkeypatch.setattr(_Padding, "__call__", masking)
    with pytest.raises(TrainingStopped, match="labels are others"):
        trained(tmp_path, tiny_recipe(write_tiny_base(tmp_path / "base")), tiny_examples(20))
    assert not (tmp_path / "adapter").exists()
