"""Packed rows without a mask of all pairs: the same documents, the same hidden states, and nothing crosses.

The kernel needs a GPU (tests/gpu/test_cuda_varlen.py). In its place stands SDPA, document by document.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny_model import build_tokenizer, write_tiny_base
from tiny_training import silent, tiny_examples, tiny_job, tiny_recipe
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    AttentionMaskInterface,
    causal_mask_function,
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_compatibility_function,
    sdpa_mask,
)

from evaluation.batching import pad_examples
from evaluation.model import ModelSpec, load_base
from evaluation.rendering import Example
from finetune import training
from finetune.capabilities import Choices
from finetune.console import Reporter
from finetune.errors import MachineError
from finetune.packing import check_isolation, pack_examples
from finetune.training import train
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics, TrainingSummary
from finetune.varlen_attention import NAME, Documents, VarlenAttention, find_documents

LENGTHS = (5, 1, 17, 2, 9)
CPU = torch.device("cpu")


@dataclass
class EachAlone:
    """The kernel's stand-in: SDPA on one document at a time."""

    leaks: bool = False
    """Whether all rows are one document to it."""
    seen: list[Documents] = field(default_factory=list)

    def why_not(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
        return None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, documents: Documents, scale: float | None) -> Tensor:
        self.seen.append(documents)
        bounds = documents.bounds.tolist()
        parts = [
            F.scaled_dot_product_attention(
                *(tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value)),
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            )
            for start, end in itertools.pairwise([0, bounds[-1]] if self.leaks else bounds)
        ]
        return torch.cat(parts, 2)[0].transpose(0, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> EachAlone:
    """Register attention with the stand-in, for one test."""
    found = EachAlone()
    attention = VarlenAttention(found)
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, attention.attend)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, NAME, attention.mask)
    return found


@pytest.fixture
def model(base: Path, kernel: EachAlone) -> PreTrainedModel:
    return load_base(ModelSpec(base, dtype="float32", device="cpu", attention="varlen"))


@pytest.fixture
def by_sdpa(base: Path) -> PreTrainedModel:
    return load_base(ModelSpec(base, dtype="float32", device="cpu"))


def texts(seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(len(build_tokenizer()), (length,), generator=draw).tolist() for length in LENGTHS]


def row_of(documents: list[list[int]]) -> dict[str, Tensor]:
    row = pack_examples([Example(tuple(text), tuple(text)) for text in documents])
    return {name: row[name] for name in ("input_ids", "position_ids")}


# ------------------------------------------------------------------ where documents begin


@st.composite
def positions(draw: st.DrawFn) -> Tensor:
    """Rows of equal length, each of documents that begin at a position of their own."""
    length = draw(st.integers(1, 40))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row: list[int] = []
        while len(row) < length:
            start, size = draw(st.integers(0, 3)), draw(st.integers(1, 12))
            row += range(start, start + size)
        rows.append(row[:length])
    return torch.tensor(rows)


@settings(deadline=None, max_examples=150)
@given(positions())
def test_documents_are_the_blocks_of_the_mask_that_transformers_would_make(positions_BT: Tensor) -> None:
    rows, length = positions_BT.shape
    ids_BT = find_packed_sequence_indices(positions_BT)
    sees = causal_mask_function
    if ids_BT is not None:
        sees = packed_sequence_compatibility_function(sees, positions_BT, ids_BT)
    mask = sdpa_mask(rows, length, length, mask_function=sees, allow_is_causal_skip=False)

    found = find_documents(sees, rows, length, CPU)
    assert found.bounds.dtype == torch.int32
    lengths = found.bounds.diff()
    assert found.longest == int(lengths.max())
    number_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    earlier = torch.arange(rows * length)[:, None] >= torch.arange(rows * length)
    blocks = (number_T[:, None] == number_T) & earlier
    whole = torch.block_diag(*mask[:, 0].int()).bool()
    assert torch.equal(blocks, whole)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_bounds_are_the_sums_of_the_lengths(lengths: list[int]) -> None:
    positions = torch.tensor([[i for length in lengths for i in range(length)]])
    ids = (positions == 0).cumsum(-1)
    sees = packed_sequence_compatibility_function(causal_mask_function, positions, ids)
    found = find_documents(sees, 1, positions.shape[1], CPU)
    assert found.bounds.tolist() == [0, *itertools.accumulate(lengths)]
    assert found.longest == max(lengths)


def test_they_are_found_once_for_all_layers(model: PreTrainedModel, kernel: EachAlone) -> None:
    model.base_model(**row_of(texts(0)), use_cache=False)
    assert len(kernel.seen) == model.config.num_hidden_layers == 2
    assert kernel.seen[0] is kernel.seen[1]
    assert kernel.seen[0].bounds.tolist() == [0, *itertools.accumulate(LENGTHS)]


# ------------------------------------------------------------------ what is computed


@torch.no_grad()
def test_packed_logits_are_those_alone(model: PreTrainedModel, by_sdpa: PreTrainedModel, kernel: EachAlone) -> None:
    for seed in range(5):
        documents = texts(seed)
        together = model(**row_of(documents), use_cache=False).logits[0].split(list(LENGTHS))
        for text, found in zip(documents, together, strict=True):
            alone = by_sdpa(input_ids=torch.tensor([text]), use_cache=False).logits[0]
            assert float((found - alone).abs().max()) <= 1e-5
    assert len(kernel.seen) == 10


@torch.no_grad()
def test_several_packed_rows_are_as_each_by_itself(model: PreTrainedModel, kernel: EachAlone) -> None:
    rows = [row_of(texts(0)), row_of(texts(1)[::-1])]
    both = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    together = model.base_model(**both, use_cache=False).last_hidden_state
    for found, row in zip(together, rows, strict=True):
        alone = model.base_model(**row, use_cache=False).last_hidden_state[0]
        assert float((found - alone).abs().max()) <= 1e-5
    assert kernel.seen[0].bounds.tolist() == [0, *itertools.accumulate(LENGTHS + LENGTHS[::-1])]


def test_examples_are_isolated_to_the_bit(model: PreTrainedModel, kernel: EachAlone) -> None:
    check_isolation(model)
    assert kernel.seen


def test_a_kernel_that_leaks_is_refused(model: PreTrainedModel, kernel: EachAlone) -> None:
    kernel.leaks = True
    with pytest.raises(MachineError, match="'varlen' a packed example sees the one before it"):
        check_isolation(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_sdpa_and_do_not_cross(
    model: PreTrainedModel, by_sdpa: PreTrainedModel, kernel: EachAlone, checkpointing: bool
) -> None:
    row = row_of(texts(3))
    found = []
    for each in (model, by_sdpa):
        each.train()
        if checkpointing:
            each.activation_checkpointing_enable({"use_reentrant": False})
        inputs = each.get_input_embeddings()(row["input_ids"]).detach().requires_grad_()
        hidden = each.base_model(inputs_embeds=inputs, position_ids=row["position_ids"], use_cache=False)
        first, second = LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3])
        hidden.last_hidden_state[0, first:second].sin().sum().backward()
        found.append((inputs.grad[0], *(p.grad for name, p in each.named_parameters() if "layers" in name)))
    assert kernel.seen
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    outside = found[0][0].abs().sum(-1)
    assert not outside[:first].any()
    assert not outside[second:].any()
    assert outside[first:second].all()


# ------------------------------------------------------------------ what is handed over to SDPA, with its mask


@torch.no_grad()
def test_all_but_packed_rows_is_computed_by_sdpa_to_the_bit(
    model: PreTrainedModel, by_sdpa: PreTrainedModel, kernel: EachAlone
) -> None:
    documents = texts(0)
    ids, _, mask = pad_examples([Example(tuple(text), tuple(text)) for text in documents], 2)
    whole = torch.tensor([documents[2]])
    four = torch.ones(17, 17, dtype=torch.bool).tril()[None, None]
    for asked in (
        {"input_ids": ids, "attention_mask": mask, "use_cache": False},  # validation
        {"input_ids": ids[1:3], "attention_mask": torch.ones_like(ids[1:3]), "use_cache": False},
        {"input_ids": whole, "position_ids": torch.arange(17)[None], "use_cache": False},  # one example in its row
        {"input_ids": whole, "attention_mask": four, "use_cache": False},  # a tree of options brings its own mask
        {"input_ids": whole, "past_key_values": DynamicCache()},
    ):
        expected = by_sdpa(**asked).logits
        if "past_key_values" in asked:
            asked["past_key_values"] = DynamicCache()
        assert torch.equal(model(**asked).logits, expected)
    assert not kernel.seen


@torch.no_grad()
def test_answers_are_written_as_by_sdpa(model: PreTrainedModel, by_sdpa: PreTrainedModel, kernel: EachAlone) -> None:
    ids = torch.tensor([[2, 2, 2, 7, 9], [5, 6, 7, 8, 9]])
    asked = {"input_ids": ids, "attention_mask": (ids != 2).long(), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**asked), by_sdpa.generate(**asked))
    assert not kernel.seen


class Refusing(EachAlone):
    """A kernel that does not take this model."""

    def why_not(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
        return "not this one"


def test_packed_rows_that_the_kernel_does_not_take_have_the_mask_of_sdpa(
    model: PreTrainedModel, by_sdpa: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, NAME, VarlenAttention(Refusing()).mask)
    row = row_of(texts(0))
    asked = {"attention_mask": None, "past_key_values": None, "position_ids": row["position_ids"]}
    inputs = model.get_input_embeddings()(row["input_ids"])
    ours, theirs = (create_causal_mask(each.config, inputs, **asked) for each in (model, by_sdpa))
    assert torch.equal(ours, theirs)
    found, expected = (each.base_model(**row, use_cache=False).last_hidden_state for each in (model, by_sdpa))
    assert torch.equal(found, expected)


# ------------------------------------------------------------------ in training

ON_CPU = Choices(attention="sdpa", loss="labelled", optimizer="adamw_torch", bf16_autocast=False)


def losses(job: TrainingJob) -> list[tuple[float | None, float | None]]:
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    return [(line.loss, line.validation_loss) for line in map(StepMetrics.model_validate_json, lines)]


def chosen(job: TrainingJob) -> str:
    return TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes()).choices["attention"]


def packed_job(base: Path, folder: Path) -> TrainingJob:
    recipe = tiny_recipe(base, training={"batches": "packed", "epochs": 2})
    return tiny_job(folder, recipe, tiny_examples(20), tiny_examples(5, seed=1))


def test_packed_training_learns_what_it_does_with_a_mask(
    base: Path, tmp_path: Path, kernel: EachAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "torch_kernel", lambda: kernel)
    found = {}
    for attention in ("sdpa", "varlen"):
        choices = dataclasses.replace(ON_CPU, attention=attention)
        monkeypatch.setattr(training, "choose", lambda *_, chosen=choices: chosen)
        job = packed_job(base, tmp_path / attention)
        train(job, silent())
        assert chosen(job) == attention
        found[attention] = losses(job)
    assert kernel.seen
    assert any(validation is not None for _, validation in found["sdpa"])
    for ours, theirs in zip(found["varlen"], found["sdpa"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_training_says_why_it_goes_on_with_a_mask(
    base: Path, tmp_path: Path, kernel: EachAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own kernel takes no model that is on a CPU."""
    choices = dataclasses.replace(ON_CPU, attention="varlen")
    monkeypatch.setattr(training, "choose", lambda *_: choices)
    job, said = packed_job(base, tmp_path), io.StringIO()
    train(job, Reporter(Console(file=said, width=200)))
    assert "a mask of all pairs, which takes longer: the kernel needs CUDA, and the model is on cpu" in said.getvalue()
    assert chosen(job) == "sdpa"
    assert not kernel.seen
