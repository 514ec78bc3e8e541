"""Memory that runs out changes how a step is computed, and neither its rows nor, but for rounding, what is learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_resume_laws import EXAMPLES as RESUMED
from test_resume_laws import job_of
from tiny_model import write_tiny_base
from tiny_training import going_on, silent, stop_after, tiny_examples, tiny_job, tiny_recipe, trained
from torch import Tensor, nn

import finetune.fused_model
import finetune.training
from evaluation.batching import pad_examples
from evaluation.rendering import Example
from finetune import training_trainer
from finetune.adapter import ADAPTER_FILE, adapter_hash, build_adapter
from finetune.batch_cutting import Batch, cut, size_of
from finetune.errors import MachineError
from finetune.fused_layer import Adapters, Layer, Row, compute
from finetune.memory_fit import ALIKE, MemoryFit, is_out_of_memory, largest_micro_batch
from finetune.packing import pack_examples
from finetune.training import train
from finetune.training_job import TrainingJob
from finetune.training_records import MemorySetting, StepMetrics, TrainingSummary
from finetune.training_trainer import Batching, RecipeTrainer

EXAMPLES = tiny_examples(40)
KINDS: dict[str, Callable[[], BaseException]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@dataclass
class Memory:
    """A memory that holds so many tokens in a backward pass, and more of them with checkpointing."""

    holds: int
    with_checkpointing: int = 10**9
    kind: str = "CUDA"
    from_call: int = 0
    calls: int = 0
    ran_out: int = 0

    def watch(self, model: PeftModel) -> PeftModel:
        """Let the backward pass run out between the layers: the upper one's adapter has its gradients by then.

        These are the layers of transformers; `compute` is for our own.
        """
        layer = model.get_base_model().model.layers[0]

        def on_forward(_: nn.Module, inputs: object, output: Tensor) -> None:
            tokens, checkpoints = output.shape[0] * output.shape[1], layer.gradient_checkpointing
            if output.requires_grad:
                output.register_hook(lambda gradient: self._hold(tokens, checkpoints))

        layer.register_forward_hook(on_forward)
        return model

    def compute(self, layer: Layer, adapters: Adapters, row: Row, x_TD: Tensor, *, recompute: bool) -> Tensor:
        """Take the place of the function that computes a layer."""
        y_TD = compute(layer, adapters, row, x_TD, recompute=recompute)
        if not x_TD.requires_grad:
            y_TD.register_hook(lambda gradient: self._hold(len(x_TD), recompute))
        return y_TD

    def _hold(self, tokens: int, checkpoints: bool) -> None:
        self.calls += 1
        most = self.with_checkpointing if checkpoints else self.holds
        if self.calls > self.from_call and tokens > most:
            self.ran_out += 1
            raise KINDS[self.kind]()


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[Memory], Memory]:
    """Train in a memory."""

    def limit(memory: Memory) -> Memory:
        monkeypatch.setattr(finetune.training, "build_adapter", lambda *given: memory.watch(build_adapter(*given)))
        monkeypatch.setattr(finetune.fused_model, "compute", memory.compute)
        return memory

    return limit


def told(job: TrainingJob) -> tuple[TrainingSummary, list[StepMetrics]]:
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    summary = TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes())
    return summary, [StepMetrics.model_validate_json(line) for line in lines]


def assert_same_but_for_rounding(one: TrainingJob, other: TrainingJob) -> None:
    (first, lines), (second, others) = told(one), told(other)
    assert first.steps == second.steps
    assert [line.tokens for line in lines] == [line.tokens for line in others]
    assert [line.loss for line in lines] == pytest.approx([line.loss for line in others], rel=1e-5)
    assert [line.grad_norm for line in lines] == pytest.approx([line.grad_norm for line in others], rel=1e-4)
    a, b = (load_file(job.run.adapter / ADAPTER_FILE) for job in (one, other))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) <= 1e-4


# ------------------------------------------------------------------ the try of the largest


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"tokens_per_micro_batch": 60}},
        {"adapter": {"dropout": 0.2}},
        {"adapter": {"dropout": 0.2}, "quantization": {"kind": "nf4"}},
        {"adapter": {"dropout": 0.2, "variant": "dora"}, "training": {"tokens_per_micro_batch": 60}},
        {"adapter": {"dropout": 0.2}, "training": {"batches": "packed", "gradient_checkpointing": True}},
    ],
    ids=["layers of our own", "lora", "qlora", "dora, accumulated", "packed, checkpointed"],
)
def test_trying_the_largest_first_changes_no_bit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, object]
) -> None:
    recipe = tiny_recipe(base, **sections)
    tried: list[int] = []
    plain = RecipeTrainer._try_largest

    def seen(self: RecipeTrainer, model: object) -> None:
        before = torch.get_rng_state()
        plain(self, model)
        tried.append(int(torch.equal(before, torch.get_rng_state())))

    monkeypatch.setattr(RecipeTrainer, "_begins_with_the_largest", lambda self: False)
    monkeypatch.setattr(RecipeTrainer, "_try_largest", seen)
    one = trained(tmp_path / "tried", recipe, EXAMPLES)
    monkeypatch.setattr(RecipeTrainer, "_try_largest", lambda self, model: None)
    other = trained(tmp_path / "not tried", recipe, EXAMPLES)
    assert tried == [1]
    assert adapter_hash(one.run.adapter) == adapter_hash(other.run.adapter)
    assert [line.loss for line in told(one)[1]] == [line.loss for line in told(other)[1]]
    assert told(one)[0].memory == MemorySetting()


@pytest.mark.parametrize("first", [1.0, 0.95, 0.94, 0.2])
def test_a_first_micro_batch_like_the_largest_is_its_own_trial(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(RecipeTrainer, "_try_largest", lambda self, model: tried.append(True))

    def tokens(batch: Sequence[int], lengths: object, packed: object) -> int:
        return 100 if batch == largest else int(100 * first)

    largest = (-1,)
    monkeypatch.setattr(training_trainer, "tokens_of", tokens)
    monkeypatch.setattr(training_trainer, "largest_micro_batch", lambda *_: largest)
    trained(tmp_path, tiny_recipe(base), EXAMPLES)
    assert tried == ([] if first >= ALIKE else [True])


def test_largest_is_the_one_with_the_most_tokens() -> None:
    batches = [(0, 1, 2), (3,), (4, 5)]
    lengths = [5, 5, 7, 17, 9, 9]
    assert largest_micro_batch(batches, lengths, packed=False) == (0, 1, 2)
    assert largest_micro_batch(batches, lengths, packed=True) == (4, 5)
    assert largest_micro_batch([(0, 1), (2,)], [5, 5, 10], packed=False) == (2,)


# ------------------------------------------------------------------ where it runs out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", ["padded", "packed"])
def test_halved_micro_batches_learn_the_same(
    base: Path, tmp_path: Path, limited: Callable[[Memory], Memory], kind: str, batches: str
) -> None:
    recipe = tiny_recipe(base, training={"batches": batches, "epochs": 2})
    roomy = trained(tmp_path / "roomy", recipe, EXAMPLES)
    memory = limited(Memory(50, kind=kind))
    tight = trained(tmp_path / "tight", recipe, EXAMPLES)
    assert_same_but_for_rounding(tight, roomy)
    settled = told(tight)[0].memory
    assert memory.ran_out == 2  # once for all tokens of a step, once for half of them
    assert settled.tokens_per_micro_batch is not None
    assert settled.tokens_per_micro_batch <= 50
    assert not settled.gradient_checkpointing


@pytest.mark.parametrize("call", [1, 4, 5, 6, 7])
def test_memory_that_runs_out_in_the_middle_begins_the_step_again(
    base: Path, tmp_path: Path, limited: Callable[[Memory], Memory], call: int
) -> None:
    recipe = tiny_recipe(base, training={"tokens_per_micro_batch": 60, "epochs": 2})
    roomy = trained(tmp_path / "roomy", recipe, EXAMPLES)
    memory = limited(Memory(40, from_call=call))
    tight = trained(tmp_path / "tight", recipe, EXAMPLES)
    assert memory.ran_out == 1
    assert_same_but_for_rounding(tight, roomy)


def test_checkpointing_comes_after_single_examples(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: Callable[[Memory], Memory]
) -> None:
    lowered: list[int | None] = []
    lower = MemoryFit._lower

    def seen(self: MemoryFit, *given: object) -> None:
        lowered.append(self._step)
        lower(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryFit, "_lower", seen)
    recipe = tiny_recipe(base)
    roomy = trained(tmp_path / "roomy", recipe, EXAMPLES)
    longest = max(len(example.input_ids) for example in EXAMPLES)
    memory = limited(Memory(longest - 1))
    tight = trained(tmp_path / "tight", recipe, EXAMPLES)
    assert told(tight)[0].memory.gradient_checkpointing
    assert memory.ran_out > 1
    assert set(lowered) == {None}, "it was found out before the first step"
    assert_same_but_for_rounding(tight, roomy)


def test_what_fits_in_no_way_is_an_error(base: Path, tmp_path: Path, limited: Callable[[Memory], Memory]) -> None:
    limited(Memory(1, with_checkpointing=1))
    job = tiny_job(tmp_path / "run", tiny_recipe(base), EXAMPLES)
    with pytest.raises(MachineError, match=r"single example of \d+ tokens and gradient checkpointing") as error:
        train(job, silent())
    assert "data.max_tokens" in (error.value.hint or "")
    assert not job.run.adapter.exists()


def test_settled_setting_is_kept_and_not_found_out_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: Callable[[Memory], Memory]
) -> None:
    recipe = tiny_recipe(base, adapter={"dropout": 0.1})
    limited(Memory(50))
    found_out = trained(tmp_path / "found out", recipe, EXAMPLES)
    settled = told(found_out)[0].memory
    again = limited(Memory(50))
    monkeypatch.setattr(finetune.training, "Batching", lambda *given: replace(Batching(*given), memory=settled))
    told_before = trained(tmp_path / "told before", recipe, EXAMPLES)
    assert again.ran_out == 0
    assert told(told_before)[0].memory == settled
    assert adapter_hash(told_before.run.adapter) == adapter_hash(found_out.run.adapter)
    assert MemorySetting.model_validate_json(settled.model_dump_json()) == settled


@pytest.mark.parametrize("trial", [True, False], ids=["tried", "begun with the largest"])
def test_settled_setting_is_kept_over_a_resume(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: Callable[[Memory], Memory], trial: bool
) -> None:
    """Where the first micro-batch, which was to be its own trial, runs out, all is tried."""
    begins_with_largest = RecipeTrainer._begins_with_the_largest
    monkeypatch.setattr(RecipeTrainer, "_begins_with_the_largest", lambda self: not trial and begins_with_largest(self))
    recipe = tiny_recipe(base, adapter={"dropout": 0.3})
    too_little = max(len(example.input_ids) for example in RESUMED) - 1  # single examples, and then checkpointing
    limited(Memory(too_little))
    straight = job_of(tmp_path / "straight", recipe)
    train(straight, silent())
    assert told(straight)[0].memory.gradient_checkpointing
    resumed = job_of(tmp_path / "resumed", recipe)
    stop_after(resumed, 1)
    again = limited(Memory(too_little))
    train(going_on(resumed), silent())
    assert again.ran_out == 0
    assert told(resumed)[0].memory == told(straight)[0].memory
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)


def test_what_runs_out_later_is_the_same_over_a_resume(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: Callable[[Memory], Memory]
) -> None:
    """A run whose first micro-batch was its trial tries nothing when it is gone on with, as it would not have."""
    monkeypatch.setattr(RecipeTrainer, "_begins_with_the_largest", lambda self: True)
    recipe = tiny_recipe(base, adapter={"dropout": 0.3})
    straight, resumed = job_of(tmp_path / "straight", recipe), job_of(tmp_path / "resumed", recipe)
    limited(Memory(20, from_call=2))
    train(straight, silent())
    limited(Memory(20, from_call=2))
    stop_after(resumed, 1)
    again = limited(Memory(20, from_call=1))
    train(going_on(resumed), silent())
    assert again.ran_out
    assert told(resumed)[0].memory == told(straight)[0].memory
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)


def test_other_errors_pass(base: Path, tmp_path: Path, limited: Callable[[Memory], Memory]) -> None:
    KINDS["other"] = lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    limited(Memory(1, kind="other"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(tiny_job(tmp_path / "run", tiny_recipe(base), EXAMPLES), silent())
    del KINDS["other"]


def test_errors_of_memory_are_told_from_others() -> None:
    assert all(is_out_of_memory(make()) for make in KINDS.values())
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


# ------------------------------------------------------------------ cutting


def examples_of(batch: Batch) -> Iterator[Example]:
    """Read the examples of a batch back; the first label of a packed one is not there."""
    if "position_ids" in batch:
        positions = batch["position_ids"][0].tolist()
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, stop in pairwise([*starts, len(positions)]):
            ids, labels = (batch[name][0, start:stop].tolist() for name in ("input_ids", "labels"))
            yield Example(tuple(ids), tuple(labels))
        return
    for ids, labels, mask in zip(*(batch[name] for name in ("input_ids", "labels", "attention_mask")), strict=True):
        yield Example(tuple(ids[mask == 1].tolist()), tuple(labels[mask == 1].tolist()))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("packed", [False, True])
def test_pieces_have_the_same_examples_and_are_small_enough(seed: int, packed: bool) -> None:
    draw = random.Random(seed)
    examples = sorted(tiny_examples(draw.randrange(1, 12), seed), key=lambda one: len(one.input_ids))
    if packed:
        batch: Batch = pack_examples(examples)
    else:
        batch = dict(zip(("input_ids", "labels", "attention_mask"), pad_examples(examples, 2), strict=True))
    whole = list(examples_of(batch))
    assert cut(batch, None) == [batch]
    most = draw.randrange(1, 200)
    pieces = cut(batch, most)
    assert [one for piece in pieces for one in examples_of(piece)] == whole
    assert all(size_of(piece) <= most or len(list(examples_of(piece))) == 1 for piece in pieces)
    longest = [max(len(one.input_ids) for one in examples_of(piece)) for piece in pieces]
    assert packed or [piece["input_ids"].shape[1] for piece in pieces] == longest
