"""Memory that runs out, on a trainer of a few lines: what is computed, dropped and begun again."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.batch_cutting import Batch, can_be_cut, cut, size_of
from finetune.errors import MachineError
from finetune.memory_fit import Computing, MemoryFit, is_out_of_memory, largest_micro_batch
from finetune.training_records import MemorySetting


def padded(*lengths: int) -> Batch:
    """Make a batch of rows; the first token of each is its number, from 1."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = row + 1, 1
    return {"input_ids": ids, "labels": ids, "attention_mask": mask}


def packed(*lengths: int) -> Batch:
    """Make a row of examples; the tokens of each are its number, from 1."""
    ids = torch.tensor([[number + 1 for number, length in enumerate(lengths) for _ in range(length)]])
    positions = torch.tensor([[place for length in lengths for place in range(length)]])
    return {"input_ids": ids, "labels": ids, "position_ids": positions}


def rows_of(batch: Batch) -> set[int]:
    return set(batch["input_ids"].unique().tolist()) - {0}


@dataclass
class Tiny:
    """A trainer whose loss is the sum of the tokens, and whose gradient is the set of what was added."""

    holds: int
    with_checkpointing: int = 0
    checkpointing: bool = False
    synced: bool = True
    gradient: list[set[int]] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    unsynced: list[bool] = field(default_factory=list)
    dropped: int = 0

    def add_gradients(self, piece: Batch) -> Tensor:
        self.tried.append(size_of(piece))
        assert len(self.tried) < 100, "it is tried for ever"
        self.unsynced.append(not self.synced)
        if size_of(piece) > (self.with_checkpointing if self.checkpointing else self.holds):
            self.gradient.append({-1})  # a part of it was there already
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.gradient.append(rows_of(piece))
        random.random(), np.random.random(), torch.rand(1)
        return piece["input_ids"].sum().float()

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        before, self.synced = self.synced, False
        yield
        self.synced = before

    def drop(self) -> None:
        self.gradient.clear()
        self.dropped += 1

    def checkpoint(self) -> None:
        self.checkpointing = True

    @property
    def computing(self) -> Computing:
        return Computing(self.add_gradients, self.without_sync, self.drop, self.checkpoint)


def fit(setting: MemorySetting | None = None, checkpoints: bool = False, processes: int = 1) -> MemoryFit:
    return MemoryFit(setting or MemorySetting(), checkpoints, processes)


# ------------------------------------------------------------------ a step


def test_what_fits_is_computed_once_and_whole() -> None:
    tiny, memory = Tiny(100), fit()
    assert memory.position == 0
    assert memory.compute(0, padded(3, 2), tiny.computing) == 3 * 1 + 2 * 2
    assert (tiny.gradient, tiny.dropped, memory.position) == ([{1, 2}], 0, 0)
    memory.compute(0, padded(4), tiny.computing)
    assert memory.position == 1
    memory.compute(1, padded(4), tiny.computing)
    assert memory.position == 0
    assert memory.setting == MemorySetting()


def test_a_step_begins_again_in_halves_and_its_sum_is_the_same() -> None:
    tiny, memory, said = Tiny(8), fit(), list[str]()
    memory.say = said.append
    memory.compute(4, padded(3, 2), tiny.computing)
    assert memory.compute(4, padded(4, 4, 4), tiny.computing) == 4 * (1 + 2 + 3)
    assert tiny.dropped == 1
    assert tiny.gradient == [{1, 2}, {1}, {2}, {3}], "the first micro-batch, and the second one's pieces, and no rest"
    assert memory.setting == MemorySetting(tokens_per_micro_batch=6)
    assert said == [
        "  memory ran out: it goes on micro-batches of at most 6 tokens; a step has the same rows as before"
    ]
    tiny.gradient.clear()
    memory.compute(5, padded(2), tiny.computing)
    assert tiny.gradient == [{1}], "another step does not compute the one before"


def test_only_the_last_piece_is_shared() -> None:
    tiny = Tiny(100)
    fit(MemorySetting(tokens_per_micro_batch=4)).compute(0, padded(4, 4, 4, 4), tiny.computing)
    assert tiny.unsynced == [True, True, True, False]


def test_checkpointing_comes_after_single_examples_and_then_nothing() -> None:
    tiny, memory, said = Tiny(3, with_checkpointing=4), fit(), list[str]()
    memory.say = said.append
    assert memory.compute(0, padded(4, 4), tiny.computing) == 12
    assert memory.setting == MemorySetting(tokens_per_micro_batch=4, gradient_checkpointing=True)
    assert tiny.checkpointing
    assert [" at most 4 tokens" in said[0], " with gradient checkpointing" in said[1], len(said)] == [True, True, 2]
    with pytest.raises(MachineError, match="single example of 5 tokens and gradient checkpointing"):
        memory.compute(1, padded(5), tiny.computing)


@pytest.mark.parametrize(
    ("setting", "checkpoints"), [(MemorySetting(gradient_checkpointing=True), False), (MemorySetting(), True)]
)
def test_what_checkpoints_already_has_nothing_left(setting: MemorySetting, checkpoints: bool) -> None:
    tiny = Tiny(3)
    with pytest.raises(MachineError, match="single example of 4 tokens"):
        fit(setting, checkpoints).compute(0, padded(4), tiny.computing)
    assert not tiny.checkpointing


def test_where_others_wait_it_is_an_error() -> None:
    with pytest.raises(MachineError, match="at step 3 in one of 2 processes"):
        fit(processes=2).compute(2, padded(4, 4), Tiny(3).computing)


def test_what_did_not_fit_is_given_back_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is held by a circle, and to the driver of a GPU."""

    class Held:
        def __init__(self) -> None:
            self.itself = self

    tiny, held, emptied = Tiny(100), list[weakref.ref[Held]](), list[int]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(tiny.tried)))

    def add_gradients(piece: Batch) -> Tensor:
        assert len(held) + len(tiny.tried) < 100, "it is tried for ever"
        assert not held or held[0]() is None
        if not held:
            held.append(weakref.ref(Held()))
            raise MemoryError
        return tiny.add_gradients(piece)

    computing = Computing(add_gradients, tiny.without_sync, tiny.drop, tiny.checkpoint)
    gc.disable()
    try:
        fit().compute(0, padded(4, 4), computing)
    finally:
        gc.enable()
    assert emptied == [0]


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("out"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory

    calls = iter(range(100))

    def add_gradients(piece: Batch) -> Tensor:
        next(calls)
        raise error

    tiny = Tiny(0)
    with pytest.raises(MachineError if memory else type(error)):
        fit().compute(0, padded(4), Computing(add_gradients, tiny.without_sync, tiny.drop, tiny.checkpoint))


# ------------------------------------------------------------------ the try of the largest


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))


def test_the_try_leaves_gradients_and_generators_as_they_were() -> None:
    tiny, memory = Tiny(100), fit()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    memory.try_out(padded(4, 4), padded(4), tiny.computing, lambda fits: fits)
    assert drawn() == expected
    assert (tiny.tried, tiny.unsynced, tiny.gradient, tiny.checkpointing) == ([8], [True], [], False)


def test_where_the_largest_is_cut_the_longest_example_is_tried_as_well() -> None:
    tiny, memory = Tiny(5, with_checkpointing=6), fit()
    memory.try_out(padded(2, 2, 2, 2), padded(6), tiny.computing, lambda fits: fits)
    assert memory.setting == MemorySetting(tokens_per_micro_batch=4, gradient_checkpointing=True)
    assert tiny.tried == [8, 4, 4, 6, 6]
    again = Tiny(5, with_checkpointing=6)
    fit(memory.setting).try_out(padded(2, 2, 2, 2), padded(6), again.computing, lambda fits: fits)
    assert (again.tried, again.checkpointing) == ([4, 4, 6], True)


def test_all_processes_ask_for_the_same() -> None:
    tiny, memory, asked = Tiny(100), fit(processes=2), list[bool]()

    def all_fit(fits: bool) -> bool:
        asked.append(fits)
        assert len(asked) < 100
        return len(asked) > 1

    memory.try_out(padded(2, 2), padded(2), tiny.computing, all_fit)
    assert asked == [True, True, True]
    assert memory.setting.tokens_per_micro_batch == 2


def test_largest_is_the_one_with_the_most_tokens_and_of_equals_with_the_longest_example() -> None:
    lengths = [5, 5, 7, 17, 9, 9]
    assert largest_micro_batch([(3,), (0, 1, 2), (4, 5)], lengths, packed=False) == (0, 1, 2)
    assert largest_micro_batch([(3,), (0, 1, 2), (4, 5)], lengths, packed=True) == (4, 5)
    assert largest_micro_batch([(0, 1), (2,)], [5, 5, 10], packed=False) == (2,)


# ------------------------------------------------------------------ cutting


def test_what_is_small_enough_or_may_be_large_is_the_same_batch() -> None:
    for batch in (padded(3, 1), packed(3, 3)):
        assert cut(batch, None)[0] is batch
        assert cut(batch, 6)[0] is batch
        assert len(cut(batch, 5)) == 2


def test_a_single_example_is_not_cut() -> None:
    for batch in (padded(9), packed(9)):
        assert not can_be_cut(batch)
        assert cut(batch, 2) == [batch]
    assert can_be_cut(padded(1, 1))
    assert can_be_cut(packed(1, 1))


def test_padded_rows_are_halved_without_what_is_padding_in_all() -> None:
    pieces = cut(padded(5, 1, 2, 4), 10)
    assert [rows_of(piece) for piece in pieces] == [{1, 2}, {3, 4}]
    assert [tuple(piece["labels"].shape) for piece in pieces] == [(2, 5), (2, 4)]


@pytest.mark.parametrize(("lengths", "first"), [((2, 2, 2, 2), 4), ((1, 1, 6), 2), ((6, 1, 1), 6), ((3, 1, 1, 1), 3)])
def test_a_packed_row_is_cut_between_examples_as_near_the_middle_as_may_be(
    lengths: tuple[int, ...], first: int
) -> None:
    whole = packed(*lengths)
    pieces = cut(whole, sum(lengths) - 1)
    assert size_of(pieces[0]) == first
    for name in whole:
        assert torch.equal(torch.cat([piece[name] for piece in pieces], dim=1), whole[name])
    assert all(piece["position_ids"][0, 0] == 0 for piece in pieces)
