from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bitsandbytes.nn.modules
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_model import build_tokenizer, write_tiny_base
from transformers import PreTrainedModel

from evaluation.errors import DataError, MachineError
from evaluation.model import (
    ModelSpec,
    Quantization,
    assert_unpacked,
    choose_device,
    dequantized_weights,
    load_base,
    load_model,
)
from evaluation.tokenizer import load_tokenizer

LINEAR_LAYERS = 14
"""Two layers of seven projections."""
NF4 = Quantization()

packs_weights = pytest.mark.skipif(
    not has_avx512bf16(), reason="bitsandbytes repacks 4-bit weights on processors with AVX512-BF16 alone"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), seed=5, hidden_size=128)


def load(folder: Path, quantization: Quantization | None = NF4, dtype: str = "float32") -> PreTrainedModel:
    return load_base(ModelSpec(folder, quantization=quantization, dtype=dtype, device="cpu"))


def four_bit_layers(model: torch.nn.Module) -> list[Linear4bit]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


# ------------------------------------------------------------------ 4-bit weights and the processor


@pytest.mark.parametrize("adapted", [False, True])
def test_loader_keeps_every_layer_unpacked(
    folder: Path, adapter: Path, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)  # as on such a processor
    assert Linear4bit(64, 64).support_avx512bf16_for_cpu
    model = load_model(ModelSpec(folder, adapter if adapted else None, NF4, "float32", "cpu"))
    layers = four_bit_layers(model)
    assert len(layers) == LINEAR_LAYERS
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def gradient(model: PeftModel) -> torch.Tensor:
    model.train()
    model.zero_grad()
    ids = torch.arange(4, 20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def evaluate(model: PeftModel) -> None:
    model.eval()
    with torch.inference_mode():
        model(input_ids=torch.arange(4, 20)[None])


def with_adapter(base: PreTrainedModel) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_is_the_same_before_and_after_an_evaluation(folder: Path, dtype: str) -> None:
    model = with_adapter(load(folder, dtype=dtype))
    before = gradient(model)
    evaluate(model)
    assert_unpacked(model)
    assert before.norm() > 0
    assert torch.equal(gradient(model), before)


@packs_weights
def test_gradient_would_be_destroyed_without_the_guard(folder: Path) -> None:
    model = with_adapter(load(folder, dtype="bfloat16"))
    before = gradient(model)
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = True
    evaluate(model)
    packed = [getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in four_bit_layers(model)]
    assert packed == [True] * LINEAR_LAYERS
    with pytest.raises(AssertionError, match="repacked by bitsandbytes"):
        assert_unpacked(model)
    with pytest.raises(AssertionError, match="repacked by bitsandbytes"):
        dict(dequantized_weights(model.get_base_model()))
    assert torch.cosine_similarity(gradient(model).float(), before.float(), dim=0) < 0.99


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dequantized_weights_are_what_the_forward_pass_multiplies_with(
    folder: Path, dtype: str, double_quant: bool
) -> None:
    model = load(folder, Quantization("nf4", double_quant), dtype)
    weights = dict(dequantized_weights(model))
    modules = dict(model.named_modules())
    assert len(weights) == LINEAR_LAYERS
    for name, weight in weights.items():
        layer = modules[name.removesuffix(".weight")]
        assert isinstance(layer, Linear4bit)
        with torch.inference_mode():
            seen = layer(torch.eye(layer.in_features, dtype=getattr(torch, dtype))).T
        assert weight.dtype == torch.float32
        assert torch.equal(seen.float(), weight)


def test_quantization_is_nf4_and_double_only_when_asked(folder: Path) -> None:
    states = [
        four_bit_layers(load(folder, Quantization("nf4", double)))[0].weight.quant_state for double in (False, True)
    ]
    assert [(state.quant_type, state.nested) for state in states] == [("nf4", False), ("nf4", True)]
    assert [str(Quantization("nf4", double)) for double in (False, True)] == ["nf4", "nf4-double"]
    assert not four_bit_layers(load(folder, None))


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_type_asked_for_and_the_model_is_in_evaluation_mode(
    folder: Path, dtype: str, expected: torch.dtype
) -> None:
    model = load(folder, None, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_folder_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no \*\.safetensors") as refusal:
        load(tmp_path, None)
    assert "save_pretrained" in refusal.value.hint


def test_base_that_was_cut_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path, None)


def test_tokenizer_is_given_a_padding_token_where_it_has_none(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token_id == loaded.eos_token_id
    build_tokenizer(separate_pad=True).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|pad|>"


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "cuda", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda:3"), ("cpu", True, "cpu"), ("cuda:1", True, "cuda:1")],
)
def test_device_is_the_gpu_where_there_is_one(
    wanted: str, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert choose_device(wanted) == expected


def test_absent_gpu_is_not_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="no GPU"):
        choose_device("cuda")


def test_hash_of_a_model_is_that_of_its_files(folder: Path, adapter: Path) -> None:
    model, none = ModelSpec(folder).sha256()
    assert none is None
    same, tuned = ModelSpec(folder, adapter).sha256()
    assert (same, tuned) == (model, ModelSpec(adapter).sha256()[0])
    assert tuned != model


# ------------------------------------------------------------------ adapters

WEIGHTS = "adapter_model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("adapter")
    with_adapter(load(folder, None)).save_pretrained(str(written))
    return written


def doctored(adapter: Path, target: Path, change: Change) -> Path:
    (target / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file(change(load_file(adapter / WEIGHTS)), target / WEIGHTS)
    return target


def filled(value: float) -> Change:
    return lambda weights: weights | {min(weights): torch.full_like(weights[min(weights)], value)}


DOCTORED: dict[str, tuple[Change, str]] = {
    "one missing": (lambda w: {name: w[name] for name in sorted(w)[1:]}, "1 adapter tensors are missing"),
    "a layer missing": (lambda w: {n: t for n, t in w.items() if "layers.1." not in n}, "are missing"),
    "none": (lambda w: {}, "the adapter has no tensors"),
    "one foreign": (lambda w: w | {min(w).replace("layers.0", "layers.9"): w[min(w)].clone()}, "belong to no layer"),
    "prefix renamed": (lambda w: {n.replace("base_model.", "module."): t for n, t in w.items()}, "missing or belong"),
    "other projection": (lambda w: {n.replace("q_proj", "o_proj"): t for n, t in w.items()}, "missing or belong"),
    "other width": (lambda w: {n: t[:, :-1].contiguous() for n, t in w.items()}, "does not fit"),
    "other rank": (lambda w: w | {min(w): w[min(w)][:2].contiguous()}, "does not fit"),
    "NaN": (filled(float("nan")), "not finite"),
    "infinity": (filled(float("inf")), "not finite"),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_adapter_that_does_not_fit_is_refused(folder: Path, adapter: Path, tmp_path: Path, name: str) -> None:
    change, message = DOCTORED[name]
    with pytest.raises(DataError, match=message):
        load_model(ModelSpec(folder, doctored(adapter, tmp_path, change), dtype="float32", device="cpu"))


def test_adapter_that_fits_is_loaded_and_applied(folder: Path, adapter: Path, tmp_path: Path) -> None:
    same = doctored(adapter, tmp_path, lambda weights: weights)
    model = load_model(ModelSpec(folder, same, dtype="float32", device="cpu"))
    assert not model.training
    ids = torch.arange(4, 12)[None]
    with torch.inference_mode():
        found = model(input_ids=ids).logits
        expected = with_adapter(load(folder, None)).eval()(input_ids=ids).logits
        untuned = load(folder, None)(input_ids=ids).logits
    assert torch.equal(found, expected)
    assert (found - untuned).abs().max() > 0.1


@pytest.mark.parametrize("damage", ["absent", "cut", "empty", "pickled"])
def test_damaged_adapter_is_refused(folder: Path, adapter: Path, tmp_path: Path, damage: str) -> None:
    broken = doctored(adapter, tmp_path, lambda weights: weights)
    file = broken / WEIGHTS
    whole = file.read_bytes()
    if damage in {"absent", "pickled"}:
        file.unlink()
    if damage == "pickled":
        torch.save(load_file(adapter / WEIGHTS), broken / "adapter_model.bin")
    if damage in {"cut", "empty"}:
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(DataError):
        load_model(ModelSpec(folder, broken, dtype="float32", device="cpu"))
