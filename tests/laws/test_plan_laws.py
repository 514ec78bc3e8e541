"""The planner against what it describes: bytes that autograd holds, parameters that transformers builds."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_model import config_of
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from evaluation.model import ModelSpec, Quantization, load_base
from finetune.adapter import build_adapter
from finetune.elementwise import TorchElementwise
from finetune.fused_model import FusedModel
from finetune.model_shape import PROJECTIONS, ModelShape
from finetune.plan_activations import Held, Layers, saved_by_checkpoints, saved_by_model
from finetune.published_shapes import PUBLISHED
from finetune.recipe import Adapter, Projection

SHAPE = ModelShape(3, 48, 80, 4, 2, 12, 300, tied=True)
RANK = 6
SOME: tuple[Projection, ...] = ("q_proj", "v_proj", "gate_proj")


class _Kept:
    """A tensor that autograd keeps, alive as long as autograd needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def bytes_kept(
    layers: Layers,
    held: Held,
    base: PreTrainedModel | None = None,
    *,
    checkpointing: bool = False,
    packed: bool = False,
) -> int:
    """Run the layers of a model forward, and count the storages that autograd holds and that were not there before."""
    dtype = torch.bfloat16 if layers.element == 2 else torch.float32
    adapter = Adapter(
        kind="lora",
        rank=layers.rank,
        dropout=0.1 if layers.dropout else 0.0,
        targets=layers.targets,
        variant="dora" if layers.dora else "standard",
    )
    model = build_adapter(base or build(layers.shape).to(dtype), adapter, 0).train()
    if layers.path == "uncast":
        model.to(dtype)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    before = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        keep = _Kept(tensor.detach())
        kept.add(keep)
        return keep

    autocast = layers.path in ("autocast", "autocast_nf4")
    cast_to = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda keep: keep.tensor), cast_to:
        hidden = cast(Any, model.get_base_model()).model(**inputs(held, packed), use_cache=False).last_hidden_state
    sizes = {k.tensor.untyped_storage().data_ptr(): k.tensor.untyped_storage().nbytes() for k in kept}
    assert hidden.requires_grad
    return sum(size for storage, size in sizes.items() if storage not in before)


def inputs(held: Held, packed: bool) -> dict[str, Tensor]:
    ids = torch.randint(0, SHAPE.vocabulary, (held.rows, held.row_tokens))
    if packed:
        return {"input_ids": ids, "position_ids": torch.arange(held.row_tokens // 2).repeat(2)[None]}
    mask = torch.ones_like(ids)
    if held.masked:
        mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def build(shape: ModelShape) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config_of(shape))


def layers_of(element: int, path: str, targets: tuple[Projection, ...], *, dora: bool, dropout: bool) -> Layers:
    return Layers(SHAPE, targets, RANK, dora, dropout, element, cast(Any, path), dropout_mask=4)


WAYS = [(2, "plain"), (4, "plain"), (2, "autocast")]
PLAIN_ADAPTERS = [("lora", PROJECTIONS), ("lora", SOME), ("dropout", PROJECTIONS), ("dora", PROJECTIONS)]
HELD = [Held(4, 16, masked=False, filled=64), Held(4, 16, masked=True, filled=64), Held(1, 32, masked=False, filled=32)]


@pytest.mark.parametrize("held", HELD, ids=str)
@pytest.mark.parametrize(("kind", "targets"), PLAIN_ADAPTERS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(("element", "path"), WAYS)
def test_the_formula_says_what_autograd_keeps(
    element: int, path: str, kind: str, targets: tuple[Projection, ...], held: Held
) -> None:
    layers = layers_of(element, path, targets, dora=kind == "dora", dropout=kind == "dropout")
    assert saved_by_model(layers, held) == bytes_kept(layers, held)


@pytest.mark.parametrize("held", HELD, ids=str)
@pytest.mark.parametrize("targets", [PROJECTIONS, SOME], ids=len)
def test_adapters_in_the_type_of_the_weights_share_their_inputs(targets: tuple[Projection, ...], held: Held) -> None:
    layers = layers_of(2, "uncast", targets, dora=False, dropout=False)
    assert saved_by_model(layers, held) == bytes_kept(layers, held)


@pytest.mark.parametrize("held", HELD, ids=str)
@pytest.mark.parametrize(
    ("kind", "targets"), [a for a in PLAIN_ADAPTERS if a[0] != "dora"], ids=lambda value: str(len(value))
)
def test_adapters_of_a_4_bit_base_share_their_inputs_under_a_gpus_autocast(
    kind: str, targets: tuple[Projection, ...], held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(SHAPE).to(torch.bfloat16).save_pretrained(tmp_path)
    base = load_base(ModelSpec(tmp_path, quantization=Quantization(), dtype="bfloat16", device="cpu"))
    of_fp32 = layers_of(2, "autocast_nf4", targets, dora=False, dropout=kind == "dropout")
    layers = replace(of_fp32, dropout_mask=2)  # on a CPU, a number in the type of the input
    # peft asks whether a GPU's is on, also on a CPU (peft/tuners/lora/bnb.py); autocast itself names the device.
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: asked(*device) if device else True)
    assert saved_by_model(layers, held) == bytes_kept(layers, held, base)


@pytest.mark.parametrize("lengths", [(16, 16, 16, 16), (40,)], ids=str)
@pytest.mark.parametrize("targets", [PROJECTIONS, SOME], ids=len)
@pytest.mark.parametrize("element", [2, 4])
def test_our_own_layers_keep_what_the_formula_says(
    element: int, targets: tuple[Projection, ...], lengths: tuple[int, ...]
) -> None:
    layers = layers_of(element, "fused", targets, dora=False, dropout=False)
    held = Held(len(lengths), max(lengths), masked=False, filled=sum(lengths))
    assert saved_by_model(layers, held) == fused_bytes_kept(layers, lengths, recompute=False)
    norm = held.filled * (SHAPE.hidden * element + 4)
    assert saved_by_checkpoints(layers, held) + norm == fused_bytes_kept(layers, lengths, recompute=True)


def fused_bytes_kept(layers: Layers, lengths: tuple[int, ...], *, recompute: bool) -> int:
    """Count what the functions of our own layers hold on to: what they save, and what they keep beside it.

    Zeros that fill documents up are not counted by the plan.
    """
    dtype = torch.bfloat16 if layers.element == 2 else torch.float32
    model = build_adapter(build(layers.shape).to(dtype), Adapter(kind="lora", rank=RANK, targets=layers.targets), 0)
    fused = FusedModel(model, TorchElementwise(), recompute=recompute)
    fused.multiple = 1
    frozen = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    documents = [torch.randint(0, SHAPE.vocabulary, (length,)) for length in lengths]
    cut: Any = fused.hidden_states(documents).grad_fn
    node = cut.next_functions[0][0]
    sizes: dict[int, int] = {}
    while node is not None:
        own = node.kept if "kept" in vars(node) else None
        for tensor in (*node.saved_tensors, *tensors_in(own)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                sizes[storage.data_ptr()] = storage.nbytes()
        node = next((n for n, _ in node.next_functions if n is not None and hasattr(n, "saved_tensors")), None)
    return sum(sizes.values())


def tensors_in(kept: object) -> Iterator[Tensor]:
    """Yield the tensors in dataclasses and lists."""
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, list | tuple):
        for one in kept:
            yield from tensors_in(one)
    elif is_dataclass(kept):
        for field in fields(kept):
            yield from tensors_in(getattr(kept, field.name))


@pytest.mark.parametrize(("element", "path"), WAYS)
def test_packed_rows_keep_a_mask_of_all_pairs(element: int, path: str) -> None:
    layers = layers_of(element, path, PROJECTIONS, dora=False, dropout=False)
    held = Held(1, 64, masked=True, filled=64)
    assert saved_by_model(layers, held) == bytes_kept(layers, held, packed=True)


@pytest.mark.parametrize(("element", "path"), WAYS)
def test_checkpointing_keeps_one_hidden_state_a_layer(element: int, path: str) -> None:
    layers = layers_of(element, path, PROJECTIONS, dora=False, dropout=False)
    held = Held(4, 32, masked=False, filled=128)
    beside = 4 * held.tokens * (SHAPE.hidden + 1) + 2 * held.tokens * SHAPE.hidden  # the last norm; 16-bit inputs
    measured = bytes_kept(layers, held, checkpointing=True)
    assert saved_by_checkpoints(layers, held) <= measured <= saved_by_checkpoints(layers, held) + beside


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head_size", [12, 20])
def test_parameters_are_those_that_transformers_builds(tied: bool, bias: bool, head_size: int) -> None:
    shape = ModelShape(3, 48, 80, 4, 2, head_size, 300, tied, attention_bias=bias, mlp_bias=bias)
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(shape))
    assert shape.parameters == model.num_parameters()
    adapted = build_adapter(build(shape), Adapter(kind="lora", rank=RANK, variant="dora"), 0)
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert shape.adapter_parameters(PROJECTIONS, RANK, dora=True) == trainable


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(published.shape))
    assert published.parameters == published.shape.parameters == model.num_parameters()
