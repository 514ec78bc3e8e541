"""Packed examples do not see each other, a packed step is the padded one, and nothing of a long text is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import Figures
from tiny_model import build_tokenizer, write_tiny_base
from tiny_training import tiny_examples, tiny_recipe, trained
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from evaluation.long_texts import joined, split_example
from evaluation.model import Attention, ModelSpec, load_base
from evaluation.rendering import IGNORE, Example
from finetune import packing
from finetune.errors import DataError, MachineError
from finetune.packed_batches import padding_saved, plan_packed_batches
from finetune.packing import check_isolation, pack_examples
from finetune.training_records import StepMetrics

TOLERANCE = 1e-5
ON_CPU: tuple[Attention, ...] = ("sdpa", "eager")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=ON_CPU)
def model(request: pytest.FixtureRequest, base: Path) -> PreTrainedModel:
    return load_base(ModelSpec(base, dtype="float32", device="cpu", attention=request.param)).eval()


def documents(draw: random.Random, count: int) -> list[list[int]]:
    """Texts of 1 to 40 tokens; short ones are frequent."""
    most = len(build_tokenizer())
    return [[draw.randrange(most) for _ in range(draw.choice((1, 2, draw.randrange(3, 41))))] for _ in range(count)]


def packed(model: PreTrainedModel, texts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each text where all stand in one row."""
    row = pack_examples([Example(tuple(text), tuple(text)) for text in texts])
    ids, positions = row["input_ids"], row["position_ids"]
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    return list(logits.split([len(text) for text in texts]))


@torch.no_grad()
def test_packed_logits_are_those_alone(model: PreTrainedModel, figures: Figures) -> None:
    draw, largest, failures = random.Random(0), 0.0, 0
    rows = figures.amount(4, 250)
    for _ in range(rows):
        texts = documents(draw, 4)
        alone = [model(input_ids=torch.tensor([text])).logits[0] for text in texts]
        worst = max(float((a - b).abs().max()) for a, b in zip(packed(model, texts), alone, strict=True))
        largest, failures = max(largest, worst), failures + (worst > TOLERANCE)
    name = f"packed logits are those alone within {TOLERANCE:g} ({model.config._attn_implementation}, fp32)"
    figures.report("Packing", name, rows, "rows of 4 texts", failures, f"largest difference {largest:.1e}")
    assert failures == 0


@torch.no_grad()
def test_changing_one_text_leaves_the_next_as_it_was(model: PreTrainedModel, figures: Figures) -> None:
    draw, failures = random.Random(1), 0
    rows = figures.amount(4, 250)
    for _ in range(rows):
        first, *others = documents(draw, 3)
        changed = [(token + 1) % len(build_tokenizer()) for token in first]
        before, after = packed(model, [first, *others])[1:], packed(model, [changed, *others])[1:]
        failures += not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    name = f"another first text leaves the others' logits bit-identical ({model.config._attn_implementation}, fp32)"
    figures.report("Packing", name, rows, "rows of 3 texts", failures)
    assert failures == 0


def test_gradients_do_not_cross(model: PreTrainedModel, figures: Figures) -> None:
    draw, failures = random.Random(2), 0
    rows = figures.amount(4, 250)
    for _ in range(rows):
        texts = [text + text for text in documents(draw, 3)]
        row = pack_examples([Example(tuple(text), tuple(text)) for text in texts])
        inputs = model.get_input_embeddings()(row["input_ids"]).detach().requires_grad_()
        positions = row["position_ids"]
        logits = model(inputs_embeds=inputs, position_ids=positions, use_cache=False).logits[0]
        start, stop = len(texts[0]), len(texts[0]) + len(texts[1])
        logits[start:stop].logsumexp(-1).sum().backward()
        gradient = inputs.grad[0].abs().sum(-1)
        failures += bool(gradient[:start].any() or gradient[stop:].any() or not gradient[start:stop].all())
    name = f"the loss of one text has no gradient in its neighbours ({model.config._attn_implementation}, fp32)"
    figures.report("Packing", name, rows, "rows of 3 texts", failures)
    assert failures == 0


def test_packed_step_has_the_loss_of_the_padded_one(base: Path, tmp_path: Path, figures: Figures) -> None:
    examples = tiny_examples(24)
    everything = sum(len(example.input_ids) for example in examples) * 2
    losses = {}
    for batches in ("padded", "packed"):
        settings = {"tokens_per_step": everything, "epochs": 4, "batches": batches}
        job = trained(tmp_path / batches, tiny_recipe(base, training=settings), examples)
        lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
        losses[batches] = [StepMetrics.model_validate_json(line).loss for line in lines]
        assert f'"batches": "{batches}"' in (job.run.training / "summary.json").read_text()
    assert len(losses["padded"]) == len(losses["packed"]) == 4
    differences = np.abs(np.subtract(losses["padded"], losses["packed"]))
    failures = int((differences > TOLERANCE).sum())
    note = f"all examples in each step, largest difference {differences.max():.1e}"
    figures.report(
        "Packing", f"a packed step has the padded one's loss within {TOLERANCE:g}", 4, "steps", failures, note
    )
    assert failures == 0


def test_every_example_is_in_every_epoch_once(figures: Figures) -> None:
    draw, failures = random.Random(3), 0
    plans = figures.amount(100, 5000)
    for seed in range(plans):
        budget = draw.choice((64, 256, 1024))
        lengths = [draw.randrange(1, budget + 1) for _ in range(draw.randrange(8, 80))]
        devices, epochs = draw.choice((1, 2, 4)), draw.choice((1, 2))
        plan = plan_packed_batches(lengths, budget * devices, None, devices, epochs, seed)
        failures += not keeps_its_promises(plan.micro_batches, lengths, epochs)
        failures += len(plan.micro_batches) % plan.micro_batches_per_step != 0
    name = "every example once per epoch, none cut, within its share of tokens_per_step"
    figures.report("Packing", name, plans, "plans", failures)
    assert failures == 0


def keeps_its_promises(rows: tuple[tuple[int, ...], ...], lengths: list[int], epochs: int) -> bool:
    """Whether every example stands in each epoch once, an epoch's rows one after another."""
    seen = [i for row in rows for i in row]
    count = len(lengths)
    return len(seen) == epochs * count and all(
        sorted(seen[start : start + count]) == list(range(count)) for start in range(0, len(seen), count)
    )


@pytest.mark.parametrize(("longest", "fill"), [(1024, 0.9), (200, 0.97)])
def test_rows_are_well_filled(longest: int, fill: float) -> None:
    draw = random.Random(4)
    lengths = [draw.randrange(10, longest) for _ in range(2000)]
    plan = plan_packed_batches(lengths, 1024, None, 1, 1, 0)
    loads = [sum(lengths[i] for i in row) for row in plan.micro_batches]
    assert max(loads) <= 1024
    assert sum(loads) / (1024 * len(loads)) > fill


def test_share_of_padding_is_that_of_the_padded_plan() -> None:
    assert padding_saved(np.full(100, 16, np.int32), 64, None, 1, 0) == 0
    assert padding_saved(np.full(3, 16, np.int32), 400, 100, 1, 0) == 0  # too few for a step
    draw = random.Random(5)
    lengths = np.array([draw.choice((10, 100)) for _ in range(400)], np.int32)
    assert 0 < padding_saved(lengths, 256, None, 1, 0) < 0.5


def test_split_text_is_learned_exactly_once(figures: Figures) -> None:
    draw, failures, tokens = random.Random(6), 0, 0
    texts = figures.amount(200, 20_000)
    for _ in range(texts):
        ids = tuple(draw.randrange(1000) for _ in range(draw.randrange(2, 500)))
        whole = Example(ids, (IGNORE, *ids[1:]))
        most = draw.randrange(2, 100)
        pieces = split_example(whole, most)
        learned = [label for piece in pieces for label in piece.labels if label != IGNORE]
        sound = all(len(p.input_ids) <= most and p.labels[0] == IGNORE for p in pieces)
        failures += not (sound and learned == list(ids[1:]) and joined(pieces) == whole)
        tokens += len(ids)
    name = "a long text is split on token boundaries, each token learned once, and can be put together again"
    figures.report("Packing", name, texts, "texts", failures, f"{tokens:,} tokens")
    assert failures == 0


# ------------------------------------------------------------------ what cannot isolate is refused


@pytest.fixture
def blind_attention() -> Iterator[str]:
    """An attention that pays no heed to the mask it is given."""

    def blind(module: object, *states: torch.Tensor, **settings: object) -> object:
        query, key, value, _mask = states
        return sdpa_attention_forward(module, query, key, value, None, **settings)

    AttentionInterface.register("blind", blind)
    yield "blind"
    AttentionInterface._global_mapping.pop("blind", None)


def blinded(base: Path, attention: str) -> PreTrainedModel:
    model = load_base(ModelSpec(base, dtype="float32", device="cpu"))
    model.config._attn_implementation = attention
    return model


def test_attention_that_is_not_known_to_isolate_is_refused(base: Path, blind_attention: str) -> None:
    with pytest.raises(MachineError, match=r"'blind' is not known.*eager, flash_attention_2, sdpa"):
        check_isolation(blinded(base, blind_attention))


def test_attention_that_leaks_is_refused_whatever_its_name(
    base: Path, blind_attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "ISOLATING", frozenset({blind_attention}))
    with pytest.raises(MachineError, match="sees the one before it"):
        check_isolation(blinded(base, blind_attention))


def test_attention_that_sees_nothing_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_itself(module: object, *states: torch.Tensor, **settings: object) -> object:
        query, key, value, _mask = states
        alone = torch.eye(query.shape[2], dtype=torch.bool)[None, None]
        return sdpa_attention_forward(module, query, key, value, alone, **settings)

    monkeypatch.setitem(AttentionInterface._global_mapping, "to itself", to_itself)
    monkeypatch.setattr(packing, "ISOLATING", frozenset({"to itself"}))
    with pytest.raises(MachineError, match="does not see its own beginning"):
        check_isolation(blinded(base, "to itself"))


def test_positions_that_go_on_are_noticed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def going_on(examples: list[Example]) -> dict[str, torch.Tensor]:
        row = pack_examples(examples)
        return row | {"position_ids": torch.arange(row["input_ids"].shape[1])[None]}

    monkeypatch.setattr(packing, "pack_examples", going_on)
    with pytest.raises(MachineError, match="sees the one before it"):
        check_isolation(load_base(ModelSpec(base, dtype="float32", device="cpu")))


def test_training_does_not_begin_where_examples_would_see_each_other(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "ISOLATING", frozenset({"flash_attention_2"}))
    with pytest.raises(MachineError, match=r"training\.batches=padded"):
        trained(tmp_path, tiny_recipe(base, training={"batches": "packed"}), tiny_examples(20))
    assert not (tmp_path / "adapter").exists()


def test_first_token_of_a_packed_example_is_not_learned() -> None:
    labels = pack_examples([Example((5, 6), (5, 6)), Example((7, 8, 9), (7, 8, 9))])["labels"]
    assert labels.tolist() == [[IGNORE, 6, IGNORE, 8, 9]]


def test_too_few_examples_for_a_packed_step_are_refused() -> None:
    with pytest.raises(DataError, match="1 training examples cannot fill a step of 2"):
        plan_packed_batches([5], 64, None, 2, 1, 0)
