from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_model import write_tiny_base
from transformers import PreTrainedModel

from evaluation.model import ModelSpec, Quantization, load_base, load_model
from finetune.adapter import (
    ADAPTER_FILE,
    adapter_hash,
    adapter_weights,
    build_adapter,
    check_moved,
    keep_in_fp32,
    restore_adapter,
    target_modules,
    write_adapter,
)
from finetune.errors import RecipeError, TrainingStopped
from finetune.recipe import Adapter

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def load(folder: Path, dtype: str = "float32", quantization: Quantization | None = None) -> PreTrainedModel:
    return load_base(ModelSpec(folder, quantization=quantization, dtype=dtype, device="cpu"))


def recipe_adapter(**values: object) -> Adapter:
    return Adapter.model_validate({"kind": "lora", "rank": 4, "alpha": 8.0, **values})


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("quantization", [None, Quantization()])
def test_seed_decides_the_weights_whatever_came_before(folder: Path, quantization: Quantization | None) -> None:
    found = []
    for before in (0, 1, 2):
        base = load(folder, quantization=quantization)
        torch.manual_seed(before)
        torch.rand(before + 1)
        found.append(adapter_weights(build_adapter(base, recipe_adapter(), 11)))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    assert not equal(found[0], adapter_weights(build_adapter(load(folder), recipe_adapter(), 12)))


@pytest.mark.parametrize("variant", ["standard", "rslora", "dora"])
@pytest.mark.parametrize(
    ("dtype", "quantization"), [("float32", None), ("bfloat16", None), ("bfloat16", Quantization())]
)
def test_adapter_is_fp32_and_alone_trainable(
    folder: Path, variant: str, dtype: str, quantization: Quantization | None
) -> None:
    model = build_adapter(load(folder, dtype, quantization), recipe_adapter(variant=variant), 0)
    kinds = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if variant == "dora" else set())
    trainable = adapter_weights(model)
    assert len(trainable) == 14 * len(kinds)
    assert {next(kind for kind in kinds if kind in name) for name in trainable} == kinds
    assert {tensor.dtype for tensor in trainable.values()} == {torch.float32}
    assert any(p.dtype == torch.bfloat16 for p in model.parameters()) == (dtype == "bfloat16")


def test_casting_after_trl_brings_everything_back_to_fp32(folder: Path) -> None:
    model = build_adapter(load(folder, "bfloat16"), recipe_adapter(), 0)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()  # as TRL does on a 4-bit base
    keep_in_fp32(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_fresh_adapter_changes_nothing(folder: Path) -> None:
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        expected = load(folder)(input_ids=ids).logits
        for variant in ("standard", "rslora", "dora"):
            found = build_adapter(load(folder), recipe_adapter(variant=variant), 0)(input_ids=ids).logits
            assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("variant", "scale"), [("standard", 8 / 4), ("rslora", 8 / 2), ("dora", 8 / 4)])
def test_recipe_becomes_peft_words(folder: Path, variant: str, scale: float) -> None:
    adapter = recipe_adapter(variant=variant, dropout=0.25, targets=("q_proj", "up_proj"))
    model = build_adapter(load(folder), adapter, 0)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 8.0, 0.25, "none")
    assert (config.use_rslora, config.use_dora) == (variant == "rslora", variant == "dora")
    assert set(config.target_modules) == {"q_proj", "up_proj"}
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == scale
    assert not hasattr(model.get_base_model().model.layers[0].self_attn.k_proj, "lora_A")


def test_all_linear_is_the_seven_projections_and_not_the_head() -> None:
    assert target_modules(recipe_adapter()) == SEVEN
    assert target_modules(recipe_adapter(targets=("v_proj", "q_proj"))) == ("v_proj", "q_proj")


def test_target_that_matches_nothing_is_refused_with_the_layers_that_are_there(folder: Path) -> None:
    base = load(folder)
    for layer in base.model.layers:
        layer.mlp.fused_proj = layer.mlp.gate_proj
        del layer.mlp.gate_proj
        del layer.mlp.up_proj
    with pytest.raises(RecipeError) as refused:
        build_adapter(base, recipe_adapter(), 0)
    assert [problem.what.split()[0] for problem in refused.value.problems] == ["'gate_proj'", "'up_proj'"]
    assert all(problem.where == "adapter.targets" for problem in refused.value.problems)
    assert "fused_proj" in refused.value.problems[0].hint
    assert "q_proj" in refused.value.problems[0].hint
    assert not any("lora" in name for name, _ in base.named_modules())


# ------------------------------------------------------------------ moved or not


def moved(folder: Path, amount: float = 0.1) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    model = build_adapter(load(folder), recipe_adapter(), 0)
    first = adapter_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(amount)
    return model, first


def test_adapter_that_moved_is_accepted(folder: Path) -> None:
    model, first = moved(folder)
    check_moved(model, first, 5)
    assert all(not torch.equal(tensor, first[name]) for name, tensor in adapter_weights(model).items())


@pytest.mark.parametrize("which", [0, 7, 27])
def test_single_tensor_that_stood_still_is_refused(folder: Path, which: int) -> None:
    model, first = moved(folder)
    name = sorted(first)[which]
    model.get_parameter(name).data.copy_(first[name])
    with pytest.raises(TrainingStopped, match=r"1 of 28 adapter tensors did not move in 5 steps") as stopped:
        check_moved(model, first, 5)
    assert name in stopped.value.what


def test_first_factors_may_stand_still_in_a_single_step_and_the_second_may_not(folder: Path) -> None:
    model, first = moved(folder)
    for name in first:
        if "lora_A" in name:
            model.get_parameter(name).data.copy_(first[name])
    check_moved(model, first, 1)
    with pytest.raises(TrainingStopped, match="14 of 28"):
        check_moved(model, first, 2)
    restore_adapter(model, first)
    with pytest.raises(TrainingStopped, match="14 of 28"):
        check_moved(model, first, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_refused(folder: Path, value: float) -> None:
    model, first = moved(folder)
    model.get_parameter(sorted(first)[3]).data[0, 0] = value
    with pytest.raises(TrainingStopped, match="not finite"):
        check_moved(model, first, 5)


def test_restoring_puts_back_every_value_and_copies_do_not_follow(folder: Path) -> None:
    model, first = moved(folder)
    now = adapter_weights(model)
    restore_adapter(model, first)
    assert equal(adapter_weights(model), first)
    assert not equal(now, first)
    restore_adapter(model, now)
    assert equal(adapter_weights(model), now)


# ------------------------------------------------------------------ written


def test_written_adapter_is_whole_sorted_and_names_no_path(folder: Path, tmp_path: Path) -> None:
    model, _ = moved(folder)
    write_adapter(model, tmp_path / "a", "org/base", "c0ffee")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {ADAPTER_FILE, "adapter_config.json"}
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert list(config) == sorted(config)
    assert config["target_modules"] == sorted(SEVEN)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "c0ffee")
    assert config["inference_mode"] is True
    assert config["task_type"] == "CAUSAL_LM"
    for path in (tmp_path / "a").iterdir():
        assert str(folder).encode() not in path.read_bytes()
    loaded = load_model(ModelSpec(folder, tmp_path / "a", dtype="float32", device="cpu"))
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_hash_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    hashes = []
    for name, amount in (("a", 0.1), ("b", 0.1), ("c", 0.2)):
        write_adapter(moved(folder, amount)[0], tmp_path / name, name, None)
        hashes.append(adapter_hash(tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_configuration_does_not_depend_on_the_order_of_hashes(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evaluation.model import ModelSpec, load_base;"
        "from finetune.adapter import build_adapter, write_adapter; from finetune.recipe import Adapter;"
        "base = load_base(ModelSpec(Path(sys.argv[1]), dtype='float32', device='cpu'));"
        "write_adapter(build_adapter(base, Adapter(kind='lora'), 0), Path(sys.argv[2]), 'b', None)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(tmp_path / seed)],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        for seed in ("1", "2")
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    for name in (ADAPTER_FILE, "adapter_config.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
