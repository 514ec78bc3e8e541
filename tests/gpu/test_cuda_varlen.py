"""Packed rows by torch's own flash attention, beside what SDPA makes of them with a mask of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_base
from tiny_training import going_on, silent, stop_after, tiny_examples, tiny_job, tiny_recipe
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.packed_attention import PASSES, document_lengths, load, measure, row_for
from benchmarks.plan_gpu import BASES
from evaluation.model import Attention, ModelSpec, load_base
from evaluation.rendering import Example
from finetune import training
from finetune.adapter import adapter_hash
from finetune.capabilities import FLASH_ATTENTION_CAPABILITY, Machine, choose, this_machine
from finetune.packing import check_isolation, pack_examples
from finetune.training import train
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics, TrainingSummary
from finetune.varlen_attention import VarlenAttention, torch_kernel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < FLASH_ATTENTION_CAPABILITY,
        reason="flash attention needs an Ampere GPU or a later one",
    ),
]
Record = Callable[[str, object], None]
LENGTHS = (1, 300, 2, 129, 64, 77)
"""Of documents: below, at and above what the kernel takes at a time."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_base(tmp_path / "base")


@pytest.fixture(autouse=True)
def registered() -> None:
    VarlenAttention(torch_kernel()).register()


def without_the_package() -> Machine:
    """This machine as it is where flash-attn is not installed, which would be chosen."""
    return replace(this_machine(), flash_attention=False)


def test_it_is_chosen_for_packed_rows_alone() -> None:
    for batches, expected in (("packed", "varlen"), ("padded", "sdpa")):
        recipe = tiny_recipe(Path("base"), base={"dtype": "bfloat16"}, training={"batches": batches})
        assert choose(without_the_package(), recipe).named()["attention"] == expected


# ------------------------------------------------------------------ hidden states and gradients


def documents(vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=draw).tolist() for length in LENGTHS]


def loaded(base: Path, attention: Attention, dtype: str = "bfloat16") -> PreTrainedModel:
    return load_base(ModelSpec(base, dtype=dtype, attention=attention)).train()


def packed(model: PreTrainedModel, slope_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states of all documents in one row, and the gradients of all weights, in fp32."""
    row = pack_examples([Example(tuple(one), tuple(one)) for one in documents(int(model.config.vocab_size))])
    inputs = {name: row[name].to(model.device) for name in ("input_ids", "position_ids")}
    hidden_TD = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
    (hidden_TD.float() * slope_TD).sum().backward()
    return hidden_TD.detach().float(), gradients(model)


def each_alone(model: PreTrainedModel, slope_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same of documents that are computed one by one."""
    found = []
    for one, slope in zip(documents(int(model.config.vocab_size)), slope_TD.split(LENGTHS), strict=True):
        hidden_TD = model.base_model(torch.tensor([one], device=model.device), use_cache=False).last_hidden_state[0]
        (hidden_TD.float() * slope).sum().backward()
        found.append(hidden_TD.detach().float())
    return torch.cat(found), gradients(model)


def gradients(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.flatten().float() for p in model.base_model.parameters() if p.grad is not None])


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_hidden_states_and_gradients_are_as_near_to_fp32_as_those_with_a_mask(
    base: Path, record_property: Record
) -> None:
    slope_TD = torch.randn(sum(LENGTHS), 64, generator=torch.Generator().manual_seed(1)).cuda()
    exact = each_alone(loaded(base, "sdpa", "float32"), slope_TD)
    with_mask, without = (packed(loaded(base, attention), slope_TD) for attention in ("sdpa", "varlen"))
    for name, ours, theirs, right in zip(("hidden states", "gradients"), without, with_mask, exact, strict=True):
        said = f"{off(ours, right):.2e} from fp32, SDPA {off(theirs, right):.2e}, apart {off(ours, theirs):.2e}"
        record_property(name, said)
        assert off(theirs, right) < 0.05  # the reference itself is one
        assert off(ours, right) <= 1.5 * off(theirs, right)
        assert off(ours, theirs) <= 2 * off(theirs, right)


def test_examples_are_isolated_to_the_bit(base: Path) -> None:
    model = loaded(base, "varlen")
    check_isolation(model)
    first, *others = documents(int(model.config.vocab_size))
    changed = [(token + 1) % int(model.config.vocab_size) for token in first]
    rows = [pack_examples([Example(tuple(one), tuple(one)) for one in (head, *others)]) for head in (first, changed)]
    with torch.no_grad():
        before, after = (
            model.base_model(row["input_ids"].cuda(), position_ids=row["position_ids"].cuda(), use_cache=False)
            for row in rows
        )
    behind = slice(len(first), None)
    assert torch.equal(before.last_hidden_state[0, behind], after.last_hidden_state[0, behind])


# ------------------------------------------------------------------ training


def lines(job: TrainingJob) -> list[StepMetrics]:
    text = (job.run.training / "metrics.jsonl").read_text()
    return [StepMetrics.model_validate_json(one) for one in text.splitlines()]


@pytest.mark.parametrize("nf4", [False, True], ids=["lora", "qlora"])
def test_losses_are_those_with_a_mask(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record, nf4: bool
) -> None:
    sections: dict[str, object] = {"quantization": {"kind": "nf4"}} if nf4 else {}
    settings = {"batches": "packed", "tokens_per_step": 512, "epochs": 4, "learning_rate": 1e-3}
    recipe = tiny_recipe(base, base={"dtype": "bfloat16"}, training=settings, **sections)
    found = {}
    for attention, has in (("sdpa", False), ("varlen", True)):
        machine = replace(without_the_package(), varlen=has)
        monkeypatch.setattr(training, "this_machine", lambda chosen=machine: chosen)
        job = tiny_job(tmp_path / attention, recipe, tiny_examples(48), tiny_examples(8, seed=1))
        train(job, silent())
        summary = TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes())
        assert summary.choices["attention"] == attention
        found[attention] = lines(job)
    pairs = list(zip(found["varlen"], found["sdpa"], strict=True))
    farthest = max(abs((ours.loss or 0) / (theirs.loss or 1) - 1) for ours, theirs in pairs)
    record_property("losses apart", f"{farthest:.1e} of {len(pairs)} steps")
    assert pairs[0][0].loss == pytest.approx(pairs[0][1].loss, rel=2e-3)
    assert farthest <= 2e-2
    ours, theirs = ([one.validation_loss for one in each if one.validation_loss is not None] for each in found.values())
    assert theirs  # of padded rows, by the same model
    assert ours == pytest.approx(theirs, rel=2e-2)


@pytest.mark.parametrize("nf4", [False, True], ids=["lora", "qlora"])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, nf4: bool
) -> None:
    """Of documents that the kernel takes at a time: of longer ones it adds up the gradients of queries in any order."""
    machine = without_the_package()
    monkeypatch.setattr(training, "this_machine", lambda: machine)
    sections: dict[str, object] = {"quantization": {"kind": "nf4"}} if nf4 else {}
    settings = {"batches": "packed", "tokens_per_step": 160, "tokens_per_micro_batch": 80, "epochs": 2}
    adapter = {"dropout": 0.1}
    recipe = tiny_recipe(base, base={"dtype": "bfloat16"}, adapter=adapter, training=settings, **sections)
    straight, resumed = (tiny_job(tmp_path / name, recipe, tiny_examples(24)) for name in ("straight", "resumed"))
    train(straight, silent())
    stop_after(resumed, 2)
    train(going_on(resumed), silent())
    assert [one.loss for one in lines(resumed)] == [one.loss for one in lines(straight)]
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)
    summary = TrainingSummary.model_validate_json((resumed.run.training / "summary.json").read_bytes())
    assert summary.choices["attention"] == "varlen"


# ------------------------------------------------------------------ memory and time


def test_a_row_of_8192_tokens_takes_less_memory(tmp_path: Path, record_property: Record) -> None:
    model = load(tmp_path / "base-60m", BASES["60m"])
    row = row_for(model, 8192)
    by_sdpa, by_varlen = measure(model, "sdpa", row), measure(model, "varlen", row)
    assert by_sdpa is not None
    assert by_varlen is not None
    assert len(row.lengths) == len(document_lengths(8192)) > 5
    peaks = f"{by_varlen.peak_bytes / 1e9:.2f} GB, SDPA {by_sdpa.peak_bytes / 1e9:.2f} GB"
    times = f"{by_varlen.seconds * PASSES:.3f} s for {PASSES} steps, SDPA {by_sdpa.seconds * PASSES:.3f} s"
    said = f"{peaks}; {times}: {by_sdpa.seconds / by_varlen.seconds:.2f} times as fast"
    print(said)  # noqa: T201 - shown by pytest -s
    record_property("a packed row of 8,192 tokens", said)
    record_property("the same gradients again", f"varlen {by_varlen.repeats}, SDPA {by_sdpa.repeats}")
    assert by_varlen.peak_bytes < by_sdpa.peak_bytes
