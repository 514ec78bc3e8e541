"""An adapter file of llama.cpp adds to each weight what peft adds, whatever scaling the adapter was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_base
from tiny_runs import finetune_command
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from finetune.base_files import open_base
from finetune.errors import DataError, ProofFailed
from finetune.gguf_adapter import AdapterKind, check_exportable, export_adapter, prove_adapter
from finetune.gguf_export import export_gguf
from finetune.gguf_names import permuted, read_shape, unpermuted
from finetune.peft_weights import open_peft_folder

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "0.mlp.up_proj": 7}, "alpha_pattern": {"k_proj": 3.0}},
    "rslora with patterns": {"use_rslora": True, "rank_pattern": {"k_proj": 3}, "alpha_pattern": {"down_proj": 1.0}},
}
ROUNDING = {"f32": 1e-6, "f16": 1e-3, "bf16": 8e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def write_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Let plain peft write an adapter with random factors."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 10, "task_type": "CAUSAL_LM", "target_modules": ALL} | settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def folded(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    ("variant", "kind"),
    [*((variant, "f32") for variant in VARIANTS), ("rslora with patterns", "f16"), ("rslora with patterns", "bf16")],
)
def test_what_llama_cpp_would_add_is_what_peft_adds(
    variant: str, kind: AdapterKind, base: Path, tmp_path: Path
) -> None:
    adapter = open_peft_folder(write_adapter(base, tmp_path / "adapter", **VARIANTS[variant]))
    files = open_base(base)
    export_adapter(adapter, files, tmp_path / "lora.gguf", kind)
    export_gguf(base, tmp_path / "base.gguf", "f32", "base")
    reader = GGUFReader(tmp_path / "lora.gguf")
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    whole = {one.name: torch.from_numpy(one.data.copy()) for one in GGUFReader(tmp_path / "base.gguf").tensors}
    # Another way than the proof's: both models are written whole, and the difference of the two files is the change.
    tuned = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned.load_state_dict(folded(base, tmp_path / "adapter"))
    tuned.save_pretrained(tmp_path / "tuned")
    for path in base.glob("tokenizer*"):
        (tmp_path / "tuned" / path.name).write_bytes(path.read_bytes())
    export_gguf(tmp_path / "tuned", tmp_path / "tuned.gguf", "f32", "tuned")
    changed = 0
    for one in GGUFReader(tmp_path / "tuned.gguf").tensors:
        change = torch.from_numpy(one.data.copy()) - whole[one.name]
        if f"{one.name}.lora_a" not in found:
            assert not change.any()
            continue
        down, up = found.pop(f"{one.name}.lora_a"), found.pop(f"{one.name}.lora_b")
        assert (alpha / down.shape[0] * up @ down - change).norm() <= ROUNDING[kind] * change.norm()
        changed += 1
    assert changed == 14
    assert not found
    proof = prove_adapter(adapter, files, tmp_path / "lora.gguf", kind)
    assert 0 <= proof.largest_error <= ROUNDING[kind]
    assert len(proof.errors) == 14


def test_the_file_says_what_llama_cpp_asks_for(base: Path, tmp_path: Path) -> None:
    adapter = open_peft_folder(write_adapter(base, tmp_path / "adapter"))
    export_adapter(adapter, open_base(base), tmp_path / "lora.gguf", "f16")
    reader = GGUFReader(tmp_path / "lora.gguf")
    stated = {name: reader.fields[name].contents() for name in ("general.type", "general.architecture", "adapter.type")}
    assert stated == {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    shapes = {one.name: tuple(one.data.shape) for one in reader.tensors}
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (4, 128)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (64, 4)


def test_rows_come_back_from_llama_cpps_order(base: Path) -> None:
    shape = read_shape(open_base(base))
    for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32)):
        weight = torch.arange(rows * 3).reshape(rows, 3)
        there = permuted(f"x.{name}.weight", weight, shape)
        assert torch.equal(unpermuted(f"x.{name}.weight", there, shape), weight)
        assert torch.equal(there, weight) == (name == "v_proj")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa subtracts"),
    "OLoRA": ({"init_lora_weights": "olora"}, "olora subtracts"),
    "a norm trained whole": ({"modules_to_save": ["norm"]}, "trained whole"),
    "trained rows": ({"trainable_token_indices": {"embed_tokens": [3, 5]}}, "single rows"),
    "the embedding with its weight": ({"target_modules": ["embed_tokens", "q_proj"]}, "an embedding of its own"),
    "a tied head": ({"target_modules": ["lm_head", "q_proj"]}, "no weight of that name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_product_is_refused_with_the_way_out(case: str, base: Path, tmp_path: Path) -> None:
    settings, reason = REFUSED[case]
    folder = write_adapter(base, tmp_path / "adapter", **settings)
    with pytest.raises(DataError, match=reason) as refused:
        check_exportable(open_peft_folder(folder), open_base(base))
    assert "finetune adapter merge" in str(refused.value)
    with pytest.raises(DataError, match=reason):
        export_adapter(open_peft_folder(folder), open_base(base), tmp_path / "lora.gguf", "f32")
    assert not (tmp_path / "lora.gguf").exists()


def test_a_product_on_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    leave_out_base_layers(folder)
    with pytest.raises(DataError, match="tied output embedding as well"):
        check_exportable(open_peft_folder(folder), open_base(base))


def leave_out_base_layers(folder: Path) -> None:
    """Make of an adapter what peft writes with `save_embedding_layers=False`."""
    file = folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "base_layer" not in name}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", ["one entry", "unpermuted", "alpha", "missing"])
def test_a_file_that_is_not_the_adapter_fails_the_proof(
    damage: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = open_peft_folder(write_adapter(base, tmp_path / "adapter"))
    files = open_base(base)
    match damage:
        case "unpermuted":
            monkeypatch.setattr("finetune.gguf_adapter.permuted", lambda name, weight, shape: weight)
        case "alpha":
            monkeypatch.setattr("finetune.gguf_adapter.GGUFWriter.add_float32", _half)
    export_adapter(adapter, files, tmp_path / "lora.gguf", "f32")
    monkeypatch.undo()
    if damage == "one entry":
        with (tmp_path / "lora.gguf").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\x00\x00\x80\x3f")
    named = adapter
    if damage == "missing":
        export_adapter(
            open_peft_folder(write_adapter(base, tmp_path / "less", target_modules=["q_proj"])),
            files,
            tmp_path / "lora.gguf",
            "f32",
        )
    with pytest.raises(ProofFailed):
        prove_adapter(named, files, tmp_path / "lora.gguf", "f32")


def _half(writer: Any, key: str, value: float) -> None:
    writer.add_key_value(key, value / 2, __import__("gguf").GGUFValueType.FLOAT32)


def test_small_values_in_fp16_are_told_and_not_written(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    _scale(folder, 1e-6)
    files, adapter = open_base(base), open_peft_folder(folder)
    export_adapter(adapter, files, tmp_path / "lora.gguf", "f16")
    with pytest.raises(ProofFailed, match="write f32 or bf16"):
        prove_adapter(adapter, files, tmp_path / "lora.gguf", "f16")
    export_adapter(adapter, files, tmp_path / "lora.gguf", "bf16")
    prove_adapter(adapter, files, tmp_path / "lora.gguf", "bf16")


def test_an_alpha_of_zero_adds_nothing(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    adapter, files = open_peft_folder(folder), open_base(base)
    export_adapter(adapter, files, tmp_path / "lora.gguf", "f32")
    assert (
        GGUFReader(tmp_path / "lora.gguf").fields["adapter.lora.alpha"].contents() != 0
    )  # which would be a scale of 1
    assert prove_adapter(adapter, files, tmp_path / "lora.gguf", "f32").largest_error == 0


def _scale(folder: Path, factor: float) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor * factor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def test_the_command_writes_file_proof_and_modelfile(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", use_rslora=True)
    out = tmp_path / "x-lora.gguf"
    done = finetune_command("adapter", "export", str(folder), "--base", str(base), "--out", str(out), "--modelfile")
    assert done.status == 0, done.stderr
    proof = json.loads((tmp_path / "x-lora.gguf.json").read_text())
    assert proof["kind"] == "f16"
    assert proof["largest_error"] <= ROUNDING["f16"]
    text = (tmp_path / "x-lora.Modelfile").read_text()
    assert "\nFROM ./base.gguf\nADAPTER ./x-lora.gguf\nTEMPLATE" in text
    assert str(tmp_path) not in text
    assert "14 modules" in done.stderr
    assert "the folder that peft wrote" not in text  # which Ollama would scale by alpha / rank


def test_a_plain_lora_may_be_loaded_as_a_folder_too(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    out = tmp_path / "x-lora.gguf"
    done = finetune_command("adapter", "export", str(folder), "--base", str(base), "--out", str(out), "--modelfile")
    assert done.status == 0, done.stderr
    assert "ADAPTER ./adapter" in (tmp_path / "x-lora.Modelfile").read_text()


def test_a_refused_adapter_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", use_dora=True)
    done = finetune_command("adapter", "export", str(folder), "--base", str(base), "--out", str(tmp_path / "out" / "x"))
    assert done.status == 3
    assert "DoRA" in done.stderr
    assert not (tmp_path / "out").exists()
