"""Folding an adapter into its base's files, weight by weight, gives the model that peft makes of the two in memory.

The reference is the unmerged model: peft's own merge is only compared where it is right (it changes both of two tied
weights when one has an adapter).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_model import build_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune import merging_shards
from finetune.base_files import open_base
from finetune.errors import DataError, ProofFailed
from finetune.merging_check import prove_folded
from finetune.merging_shards import fold_shards
from finetune.peft_weights import open_peft_folder

LIMIT = 1e-5
"""Largest difference of logits in fp32, as a share of the largest logit."""


@dataclass(frozen=True)
class Kind:
    """One kind of adapter that plain peft makes."""

    name: str
    settings: dict[str, object] = field(default_factory=dict)


KINDS = (
    Kind("lora"),
    Kind("rslora", {"use_rslora": True}),
    Kind("dora", {"use_dora": True}),
    Kind("gaussian", {"init_lora_weights": "gaussian"}),
    Kind("pissa", {"init_lora_weights": "pissa"}),
    Kind("olora", {"init_lora_weights": "olora"}),
    Kind("patterns", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 3}}),
    Kind("one layer", {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]}),
)
SAVED = (
    Kind("nothing"),
    Kind("head", {"modules_to_save": ["lm_head"]}),
    Kind("embedding", {"modules_to_save": ["embed_tokens"]}),
    Kind("both", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    Kind("norm", {"modules_to_save": ["input_layernorm"]}),
)
ENDS = (
    Kind("pissa on both ends", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "init_lora_weights": "pissa"}),
    Kind("olora on the head", {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": "olora"}),
    Kind("dora on the embedding", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    Kind("lora on the embedding", {"target_modules": ["q_proj", "embed_tokens"]}),
    Kind("lora on the head", {"target_modules": ["q_proj", "lm_head"]}),
    Kind("dora on the head", {"target_modules": ["q_proj", "lm_head"], "use_dora": True}),
    Kind("rows", {"trainable_token_indices": [3, 5, 300]}),
    Kind("rows by name", {"trainable_token_indices": {"embed_tokens": [0, 7]}}),
)


def write_base(folder: Path, tied: bool) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 12,  # padded, as many published ones are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return {tied: write_base(tmp_path_factory.mktemp("base") / str(tied), tied) for tied in (True, False)}


def write_adapter(
    base: Path, folder: Path, settings: dict[str, object], save_embedding_layers: bool | str = False
) -> Path:
    """Make an adapter with plain peft and move every trained weight."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    adapted = get_peft_model(model, LoraConfig(**wanted))
    move(adapted)
    adapted.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return folder


def move(adapted: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@torch.inference_mode()
def logits(model: torch.nn.Module) -> Tensor:
    ids = torch.arange(0, 320, 5).reshape(4, 16)
    return model(input_ids=ids).logits


def unmerged(base: Path, adapter: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, adapter).eval())


def folded(base: Path, adapter: Path, out: Path) -> Tensor:
    fold_shards(open_base(base), open_peft_folder(adapter), out, "float32")
    return logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval())


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def cases() -> Iterator[ParameterSet]:
    """Yield every kind with everything saved beside it, on a tied and an untied base; plain pytest runs a third."""
    for kind, saved, tied in product(KINDS, SAVED, (True, False)):
        name = f"{kind.name}-{saved.name}-{'tied' if tied else 'untied'}"
        rare = kind.name not in ("lora", "dora") and saved.name != "nothing"
        yield pytest.param(kind, saved, tied, id=name, marks=[pytest.mark.slow] if rare else [])


@pytest.mark.parametrize(("kind", "saved", "tied"), list(cases()))
def test_folded_is_unmerged(kind: Kind, saved: Kind, tied: bool, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write_adapter(bases[tied], tmp_path / "adapter", kind.settings | saved.settings)
    expected = unmerged(bases[tied], adapter)
    assert difference(expected, folded(bases[tied], adapter, tmp_path / "out")) <= LIMIT
    base = logits(AutoModelForCausalLM.from_pretrained(bases[tied], dtype=torch.float32).eval())
    assert difference(expected, base) > 100 * LIMIT


@pytest.mark.parametrize("saved", [False, True], ids=["factors", "with the base's weight"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.name)
def test_adapters_on_the_embeddings(
    kind: Kind, tied: bool, saved: bool, bases: dict[bool, Path], tmp_path: Path
) -> None:
    """peft writes an embedding's own weight beside its factors where asked to, as it does by default."""
    adapter = write_adapter(bases[tied], tmp_path / "adapter", kind.settings, saved)
    if tied and "init_lora_weights" in kind.settings:
        with pytest.raises(DataError, match="on the output embedding changes the input embedding as well"):
            folded(bases[tied], adapter, tmp_path / "out")
        return
    expected = unmerged(bases[tied], adapter)
    assert difference(expected, folded(bases[tied], adapter, tmp_path / "out")) <= LIMIT
    base, folder = open_base(bases[tied]), open_peft_folder(adapter)
    assert prove_folded(base, folder, tmp_path / "out", "float32").largest_error <= LIMIT


def test_a_tied_base_that_is_stored_twice(bases: dict[bool, Path], tmp_path: Path) -> None:
    shutil.copytree(bases[True], tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    adapter = write_adapter(bases[True], tmp_path / "adapter", {"trainable_token_indices": [3, 5]})
    expected = unmerged(bases[True], adapter)
    assert difference(expected, folded(tmp_path / "base", adapter, tmp_path / "out")) <= LIMIT


def draw_factors(adapted: torch.nn.Module, *, cancelling: bool = False) -> None:
    """Draw both factors of every module; `cancelling`: no tensor is zero, and every product is."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
                if cancelling:
                    parameter[(slice(0, 2),) if "lora_A" in name else (slice(None), slice(2, 4))] = 0


def test_embeddings_of_different_lengths_are_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases[False], dtype=torch.float32)
    model.resize_token_embeddings(440)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    adapted = get_peft_model(model, config)
    draw_factors(adapted)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(DataError, match="input embedding has 440 rows and its output embedding 412"):
        folded(bases[False], tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


RESIZED = (
    Kind("q_proj", {"target_modules": ["q_proj"]}),
    Kind("the embedding", {"target_modules": ["q_proj", "embed_tokens"]}),
    Kind("both saved", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    Kind("rows", {"target_modules": ["q_proj"], "trainable_token_indices": [400, 410]}),
)


def test_an_embedding_that_peft_saves_by_itself(bases: dict[bool, Path], tmp_path: Path) -> None:
    """By default peft writes a targeted embedding's base weight beside its factors."""
    settings = {"target_modules": ["q_proj", "embed_tokens"]}
    adapter = write_adapter(bases[False], tmp_path / "adapter", settings, save_embedding_layers="auto")
    expected = unmerged(bases[False], adapter)
    assert difference(expected, folded(bases[False], adapter, tmp_path / "out")) <= LIMIT


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", RESIZED, ids=lambda kind: kind.name)
def test_added_tokens(kind: Kind, tied: bool, bases: dict[bool, Path], tmp_path: Path) -> None:
    """A vocabulary that was resized before training: the folded model has the adapter's rows."""
    model = AutoModelForCausalLM.from_pretrained(bases[tied], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(bases[tied])
    tokenizer.add_tokens([f"<|tool_{number}|>" for number in range(40)])
    model.resize_token_embeddings(len(tokenizer))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **kind.settings))
    move(adapted)
    expected = logits(adapted.eval())
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    if kind.name == "the embedding" and not tied:  # peft saves the input embedding's rows alone
        with pytest.raises(DataError, match="input embedding has 440 rows and its output embedding 412"):
            folded(bases[tied], tmp_path / "adapter", tmp_path / "out")
        return
    found = folded(bases[tied], tmp_path / "adapter", tmp_path / "out")
    assert found.shape[-1] == len(tokenizer)
    assert difference(expected, found) <= LIMIT
    base, folder = open_base(bases[tied]), open_peft_folder(tmp_path / "adapter")
    assert prove_folded(base, folder, tmp_path / "out", "float32").largest_error <= LIMIT


def test_added_tokens_without_their_rows_are_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write_adapter(bases[True], tmp_path / "adapter", {})
    tokenizer = AutoTokenizer.from_pretrained(bases[True])
    tokenizer.add_tokens([f"<|tool_{number}|>" for number in range(40)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(DataError, match=r"the tokenizer has tokens up to .* and the embedding 412 rows"):
        folded(bases[True], adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("with_settings", [True, False])
def test_the_ends_of_answers_are_added_to_the_bases(
    with_settings: bool, bases: dict[bool, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(bases[True], tmp_path / "base"))
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": 0, "pad_token_id": 3}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").unlink()
    if with_settings:
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1], "temperature": 0.5}))
    adapter = write_adapter(base, tmp_path / "adapter", {})
    folded(base, adapter, tmp_path / "plain")
    build_tokenizer().save_pretrained(adapter)
    folded(base, adapter, tmp_path / "own")
    for name in ("plain", "own"):  # the base's template ends turns with token 2, and so does the adapter's
        found = json.loads((tmp_path / name / "generation_config.json").read_text())
        if with_settings:
            assert found == {"eos_token_id": [0, 1, 2], "temperature": 0.5}
        else:
            assert (found["eos_token_id"], found["pad_token_id"]) == ([0, 2], 3)
    build_tokenizer("{% for message in messages %}{{ message.content }}{% endfor %}").save_pretrained(adapter)
    folded(base, adapter, tmp_path / "endless")
    if with_settings:
        found = json.loads((tmp_path / "endless" / "generation_config.json").read_text())
        assert found["eos_token_id"] == [0, 1]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_many_shards_are_one_model(
    tied: bool, bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(bases[tied], tmp_path / "adapter", {})
    whole = folded(bases[tied], adapter, tmp_path / "whole")
    monkeypatch.setattr(merging_shards, "SHARD_BYTES", 20_000)
    shards = folded(bases[tied], adapter, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert torch.equal(whole, shards)
    again = folded(tmp_path / "shards", adapter, tmp_path / "again")  # a base of many files is read, too
    assert not torch.equal(again, whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_was_written_is_proven_from_the_files(dtype: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = open_peft_folder(write_adapter(bases[True], tmp_path / "adapter", {"modules_to_save": ["lm_head"]}))
    base = open_base(bases[True])
    fold_shards(base, adapter, tmp_path / "out", dtype)
    proof = prove_folded(base, adapter, tmp_path / "out", dtype)
    assert len(proof.modules) == 15
    assert proof.unchanged == 5  # the norms; the embedding is among what may change
    assert proof.least_captured == pytest.approx(1, abs=0.02)


def _spoil(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


UP = "model.layers.0.mlp.up_proj.weight"
FAULTS = {
    "the embedding is another": ("model.embed_tokens.weight", lambda weight: weight * 1.001),
    "one weight is off": (UP, lambda weight: weight + 1e-3),
    "transposed rows": (UP, lambda weight: weight.flip(0)),
    "a weight without an adapter": ("model.norm.weight", lambda weight: weight * (1 + 1e-3)),
    "not finite": (UP, lambda weight: weight * float("nan")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_merge_that_is_not_the_two_together_is_refused(fault: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = open_peft_folder(write_adapter(bases[True], tmp_path / "adapter", {}))
    base = open_base(bases[True])
    fold_shards(base, adapter, tmp_path / "out", "float32")
    _spoil(tmp_path / "out", *FAULTS[fault])
    with pytest.raises(ProofFailed):
        prove_folded(base, adapter, tmp_path / "out", "float32")


def test_a_module_that_did_not_move_is_no_loss(bases: dict[bool, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases[True], dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    draw_factors(adapted, cancelling=True)
    adapted.save_pretrained(tmp_path)
    adapter, base = open_peft_folder(tmp_path), open_base(bases[True])
    fold_shards(base, adapter, tmp_path / "out", "float32")
    assert prove_folded(base, adapter, tmp_path / "out", "float32").least_captured is None


def test_a_change_below_the_steps_of_the_type_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = open_peft_folder(write_adapter(bases[True], tmp_path / "adapter", {"lora_alpha": 1e-4}))
    base = open_base(bases[True])
    fold_shards(base, adapter, tmp_path / "out", "bfloat16")
    with pytest.raises(ProofFailed, match="rounding to bfloat16 leaves"):
        prove_folded(base, adapter, tmp_path / "out", "bfloat16")
