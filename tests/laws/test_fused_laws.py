"""The layers that we compute ourselves are transformers' and peft's: the same hidden states, losses and gradients."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_model import build_model, build_tokenizer, write_tiny_base
from tiny_training import tiny_examples, tiny_recipe, trained
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from evaluation.model import ModelSpec, Quantization, load_base
from evaluation.rendering import IGNORE
from finetune.adapter import ADAPTER_FILE
from finetune.elementwise import TILES_MULTIPLE, Elementwise
from finetune.elementwise_library import load_elementwise
from finetune.fused_attention import BLOCK, group_documents
from finetune.fused_layer import Layer
from finetune.fused_model import FusedModel, build_layer, documents_of, why_plain
from finetune.machine import compiler_version
from finetune.matrix_product import product
from finetune.packing import pack_examples
from finetune.recipe import Recipe
from finetune.training_records import StepMetrics, TrainingSummary

VOCABULARY = len(build_tokenizer())
FILLS_TILES = {"head_dim": 64, "hidden_size": 96, "intermediate_size": 160}
LENGTHS = [(5,), (24, 24, 24), (30, 11, 9, 2, 1), (150, 140, 100, 40), (BLOCK + 30, BLOCK), (3 * BLOCK + 9, 3)]
"""One document; equal ones; unequal ones; several groups; one of two blocks beside one of one; one of four."""


def adapted(model: LlamaForCausalLM, **lora: object) -> PeftModel:
    """Add an adapter whose B is not zero, so that A has a gradient."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    with_adapter = get_peft_model(model, LoraConfig(**settings))  # type: ignore[arg-type]
    for name, parameter in with_adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return with_adapter.train()


def llama(**changed: object) -> LlamaForCausalLM:
    """Build a random LLaMA that is not the tiny one: biggest differences first in what the layers depend on."""
    torch.manual_seed(0)
    shape: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changed)))  # type: ignore[arg-type]


KINDS: dict[str, Callable[[], PeftModel]] = {
    "all layers, tied head": lambda: adapted(build_model(VOCABULARY)),
    "groups of three heads": lambda: adapted(llama()),
    "a head for each key": lambda: adapted(llama(num_key_value_heads=6)),
    "one key for all heads": lambda: adapted(llama(num_key_value_heads=1)),
    "heads wider than the model": lambda: adapted(llama(head_dim=32)),
    "rotation of llama 3": lambda: adapted(
        llama(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        )
    ),
    "two projections": lambda: adapted(llama(), target_modules=["q_proj", "v_proj"]),
    "the last ones alone": lambda: adapted(llama(), target_modules=["down_proj"]),
    "rank-stabilized": lambda: adapted(llama(), use_rslora=True, r=9),
}


def random_documents(lengths: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(4, VOCABULARY, (length,), generator=draw) for length in lengths]


@pytest.fixture(params=["torch", "compiled"])
def elementwise(request: pytest.FixtureRequest) -> Elementwise:
    """Compute the parts that are no matrix products by torch, or by our own functions where a compiler is."""
    compiled = request.param == "compiled"
    if compiled and compiler_version() is None:
        pytest.skip("there is no compiler")
    return load_elementwise(compiled=compiled)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def theirs(model: PeftModel, documents: list[Tensor]) -> Tensor:
    """Run each document alone through transformers and peft, (T, D)."""
    decoder = model.get_base_model().model
    return torch.cat([decoder(input_ids=one[None], use_cache=False).last_hidden_state[0] for one in documents])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_alike(
    model: PeftModel, documents: list[Tensor], elementwise: Elementwise, *, recompute: bool = False, multiple: int = 1
) -> None:
    """Compare hidden states, and gradients of a loss in which every number of them counts."""
    expected = theirs(model, documents)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (expected * weights).sum().backward()
    wanted = gradients(model)
    fused = FusedModel(model, elementwise, recompute=recompute)
    fused.multiple = multiple
    found = fused.hidden_states(documents)
    (found * weights).sum().backward()
    ours = gradients(model)
    assert relative(found.detach(), expected.detach()) <= 1e-5
    assert wanted.keys() == ours.keys() != set()
    assert all(gradient.is_contiguous() for gradient in ours.values())
    assert max(relative(ours[name], wanted[name]) for name in wanted) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_are_those_of_the_libraries(kind: str, elementwise: Elementwise) -> None:
    model = KINDS[kind]()
    assert why_plain(model) is None
    assert_alike(model, random_documents((30, 11, 9, 2, 1)), elementwise)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_documents_of_any_length(lengths: tuple[int, ...], recompute: bool, elementwise: Elementwise) -> None:
    assert_alike(adapted(llama()), random_documents(lengths), elementwise, recompute=recompute)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("multiple", [3, TILES_MULTIPLE])
def test_zeros_behind_documents_change_nothing(
    lengths: tuple[int, ...], multiple: int, elementwise: Elementwise
) -> None:
    assert_alike(adapted(llama()), random_documents(lengths), elementwise, multiple=multiple)


def test_tiles_compute_where_sizes_fit(elementwise: Elementwise) -> None:
    def built(model: LlamaForCausalLM, rank: int) -> Layer:
        return build_layer(adapted(model, r=rank).get_base_model().model.layers[0], elementwise)

    fits = built(llama(**FILLS_TILES).bfloat16(), 4)
    assert fits.attention.tiles is elementwise.tiles
    assert {stack.tiles for stack in (fits.inputs, fits.output, fits.gates, fits.down)} == {elementwise.tiles}
    for layer in (built(llama().bfloat16(), 4), built(llama(**FILLS_TILES), 4)):
        assert layer.attention.tiles is layer.inputs.tiles is layer.gates.tiles is None
    assert built(llama(**FILLS_TILES).bfloat16(), 3).inputs.tiles is None


def test_products_of_bfloat16_have_few_shapes() -> None:
    assert FusedModel(adapted(llama().bfloat16()), load_elementwise(compiled=False)).multiple == TILES_MULTIPLE
    assert FusedModel(adapted(llama()), load_elementwise(compiled=False)).multiple == 1


def test_a_base_in_nf4(tmp_path: Path, elementwise: Elementwise) -> None:
    base = load_base(ModelSpec(write_tiny_base(tmp_path), quantization=Quantization(), dtype="float32", device="cpu"))
    assert_alike(adapted(base), random_documents((40, 30, 8)), elementwise)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is told by Linux")
@pytest.mark.parametrize("quantization", [None, Quantization()], ids=["dense", "NF4"])
def test_nothing_keeps_the_file_of_the_base_in_memory(tmp_path: Path, quantization: Quantization | None) -> None:
    """One weight that lies in a mapped file keeps all of it there, beside the copies."""
    place = write_tiny_base(tmp_path)
    base = load_base(ModelSpec(place, quantization=quantization, dtype="float32", device="cpu"))
    mapped = Path("/proc/self/maps")
    assert str(place) in mapped.read_text()
    model = adapted(base)  # type: ignore[arg-type]
    FusedModel(model, load_elementwise(compiled=False))
    assert str(place) not in mapped.read_text()


@pytest.mark.parametrize("tiles", [False, True], ids=["fp32", "bf16, fills tiles"])
def test_what_is_computed_anew_is_the_same_to_the_bit(tiles: bool, elementwise: Elementwise) -> None:
    model = adapted(llama(**FILLS_TILES).bfloat16() if tiles else llama())
    documents = random_documents((60, 50, 9))
    found = []
    for recompute in (False, True):
        FusedModel(model, elementwise, recompute=recompute).hidden_states(documents).square().sum().backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_document_sees_no_other(elementwise: Elementwise) -> None:
    model = adapted(llama())
    documents = random_documents((40, 38, 9))
    other = [documents[0], (documents[1] + 1) % VOCABULARY, documents[2]]
    before, after = (FusedModel(model, elementwise).hidden_states(row) for row in (documents, other))
    assert torch.equal(before[:40], after[:40])
    assert torch.equal(before[78:], after[78:])
    assert not torch.equal(before[40:78], after[40:78])


@pytest.mark.parametrize("rank", [4, 3])
@pytest.mark.parametrize("shape", [{}, FILLS_TILES], ids=["small", "fills tiles"])
def test_in_bfloat16_it_is_as_near_to_fp32_as_the_libraries_are(
    shape: dict[str, int], rank: int, elementwise: Elementwise
) -> None:
    exact, rounded = adapted(llama(**shape), r=rank), adapted(llama(**shape).bfloat16(), r=rank)
    for parameter in rounded.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    documents = random_documents((150, 60, 30, 30, 1))
    wanted, libraries, ours = (
        hidden_and_gradients(model, compute(documents))
        for model, compute in (
            (exact, lambda row: theirs(exact, row)),
            (rounded, lambda row: theirs(rounded, row)),
            (rounded, FusedModel(rounded, elementwise).hidden_states),
        )
    )
    for found, other, exactly in zip(ours, libraries, wanted, strict=True):
        assert relative(found, exactly) <= 1.25 * relative(other, exactly)


def hidden_and_gradients(model: PeftModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states and all gradients of a loss in which every number of them counts, in fp32."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    (hidden.float() * weights).sum().backward()
    return hidden.detach().float(), torch.cat([gradient.flatten() for gradient in gradients(model).values()])


def leave_behind(rows: int) -> None:
    """Free tensors that are full of what is no number."""
    widths = (4, 12, 48, 52, 60, 80, 84, 96, 120, 160)
    left = [torch.full((rows, width), float("nan"), dtype=torch.bfloat16) for width in widths * 5]
    del left


@pytest.mark.parametrize("shape", [{}, FILLS_TILES], ids=["small", "fills tiles"])
def test_what_lay_in_memory_before_does_not_matter(shape: dict[str, int], elementwise: Elementwise) -> None:
    """oneDNN multiplies what lies behind a short row with zero, which not a number survives; rows end in zeros."""
    model, documents = adapted(llama(**shape).bfloat16()), random_documents((60, 30, 30))
    for attempt in range(20):
        leave_behind(attempt + 100)
        hidden = FusedModel(model, elementwise).hidden_states(documents)
        assert hidden.isfinite().all()
        leave_behind(attempt + 100)
        hidden.sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("rows", [511, 512, 513, 1300])
def test_a_product_in_parts_is_the_whole_one(rows: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    x, weight = torch.randn(rows, 100).bfloat16(), torch.randn(100, 60).bfloat16()
    found = product(x, weight)
    torch.set_num_threads(threads)
    assert found.shape == (rows, 60)
    assert relative(found.float(), x.float() @ weight.float()) <= 2**-8


# ------------------------------------------------------------------ rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.sampled_from([1, 3, TILES_MULTIPLE]))
def test_groups_hold_every_token_once_and_little_padding(lengths: list[int], multiple: int) -> None:
    lengths = sorted(lengths, reverse=True)
    groups = group_documents(lengths, multiple)
    assert [group.rows.start for group in groups] == [0, *[group.rows.stop for group in groups[:-1]]]
    assert groups[-1].rows.stop == sum(lengths)
    assert sum(group.documents for group in groups) == len(lengths)
    for group in groups:
        tokens = group.rows.stop - group.rows.start
        places = torch.arange(tokens) if group.places is None else group.places
        assert len(set(places.tolist())) == tokens == group.lengths.sum()
        assert (group.starts - group.rows.start).tolist() == (group.lengths.cumsum(0) - group.lengths).tolist()
        assert group.longest % multiple == 0
        assert group.longest - group.lengths[0] < multiple
        assert group.longest <= 64 or group.documents * group.lengths[0] * 0.75 <= tokens


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_padded_and_packed_batches_come_apart_into_their_examples(seed: int, packed: bool) -> None:
    from finetune.training_trainer import _Padding

    examples = tiny_examples(random.Random(seed).randrange(1, 7), seed)
    rows = [{"input_ids": list(one.input_ids), "labels": list(one.labels)} for one in examples]
    batch = pack_examples(examples) if packed else _Padding(2)(rows)
    documents, labels = documents_of(batch)
    assert sorted(tuple(one.tolist()) for one in documents) == sorted(one.input_ids for one in examples)
    lengths = [len(one) for one in documents]
    assert lengths == sorted(lengths, reverse=True)
    of_ids = {one.input_ids: (IGNORE, *one.labels[1:]) for one in examples}
    assert labels.tolist() == [label for one in documents for label in of_ids[tuple(one.tolist())]]


# ------------------------------------------------------------------ where it steps aside


def _mistral() -> PeftModel:
    config = MistralConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return adapted(MistralForCausalLM(config))  # type: ignore[arg-type]


def _second_adapter() -> PeftModel:
    model = adapted(llama())
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("other")
    return model


def _merged() -> PeftModel:
    model = adapted(llama())
    model.merge_adapter()
    return model


ASIDE: dict[str, tuple[Callable[[], PeftModel], str]] = {
    "another architecture": (_mistral, "not LlamaForCausalLM"),
    "dropout": (lambda: adapted(llama(), lora_dropout=0.1), "dropout"),
    "DoRA": (lambda: adapted(llama(), use_dora=True), "DoRA"),
    "a second adapter": (_second_adapter, "another adapter"),
    "a merged adapter": (_merged, "another adapter, or a merged one"),
    "biases": (lambda: adapted(llama(attention_bias=True)), "has a bias"),
    "another activation": (lambda: adapted(llama(hidden_act="gelu")), "gelu"),
    "dropout in the attention": (lambda: adapted(llama(attention_dropout=0.1)), "attention has dropout"),
    "an adapter on the head": (lambda: adapted(llama(), target_modules=["q_proj", "lm_head"]), "lm_head"),
    "trained biases": (lambda: adapted(llama(), lora_bias=True), "is trained as well"),
    "trained embeddings": (lambda: adapted(llama(), modules_to_save=["embed_tokens"]), "is trained as well"),
}


@pytest.mark.parametrize("case", ASIDE)
def test_it_steps_aside(case: str) -> None:
    build, said = ASIDE[case]
    assert said in str(why_plain(build()))


# ------------------------------------------------------------------ whole runs

EXAMPLES = tiny_examples(96)
FIFTY = {"epochs": 9, "tokens_per_step": 320, "learning_rate": 3e-3}


def steps_of(folder: Path, recipe: Recipe) -> list[StepMetrics]:
    trained(folder, recipe, EXAMPLES)
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [StepMetrics.model_validate_json(line) for line in lines]


@pytest.mark.parametrize("quantization", [None, {"kind": "nf4"}], ids=["LoRA", "NF4"])
def test_losses_of_fifty_steps_are_those_of_the_libraries(tmp_path: Path, quantization: dict[str, str] | None) -> None:
    base = write_tiny_base(tmp_path / "base")
    found = {}
    for kernels in ("auto", "plain"):
        recipe = tiny_recipe(base, training=FIFTY | {"kernels": kernels}, quantization=quantization)
        found[kernels] = steps_of(tmp_path / kernels, recipe)
        written = TrainingSummary.model_validate_json((tmp_path / kernels / "training/summary.json").read_bytes())
        assert written.choices["layers"] == ("fused, compiled" if kernels == "auto" else "plain")
    assert len(found["auto"]) >= 50
    losses = {kernels: [step.loss for step in steps] for kernels, steps in found.items()}
    assert losses["auto"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["auto"][-1] < 0.9 * losses["auto"][0]
    norms = {kernels: [step.grad_norm for step in steps] for kernels, steps in found.items()}
    assert norms["auto"] == pytest.approx(norms["plain"], rel=1e-4)
    ours, theirs = (load_file(tmp_path / kernels / "adapter" / ADAPTER_FILE) for kernels in found)
    assert max(relative(ours[name], theirs[name]) for name in theirs) <= 1e-3
