"""Folding an adapter into its base's files, weight by weight, gives the model that peft makes of the two in memory.

The reference is the unmerged model: peft's own merge is only compared where it is right (it changes both of two tied
weights when one has an adapter).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_model import build_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune import merging_shards
from finetune.errors import DataError
from finetune.merging_shards import fold_shards, open_base
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


def write_adapter(base: Path, folder: Path, settings: dict[str, object]) -> Path:
    """Make an adapter with plain peft and move every trained weight."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    adapted = get_peft_model(model, LoraConfig(**wanted))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


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


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("saved", SAVED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_folded_is_unmerged(kind: Kind, saved: Kind, tied: bool, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write_adapter(bases[tied], tmp_path / "adapter", kind.settings | saved.settings)
    expected = unmerged(bases[tied], adapter)
    assert difference(expected, folded(bases[tied], adapter, tmp_path / "out")) <= LIMIT
    base = logits(AutoModelForCausalLM.from_pretrained(bases[tied], dtype=torch.float32).eval())
    assert difference(expected, base) > 100 * LIMIT


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.name)
def test_adapters_on_the_embeddings(kind: Kind, tied: bool, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write_adapter(bases[tied], tmp_path / "adapter", kind.settings)
    expected = unmerged(bases[tied], adapter)
    assert difference(expected, folded(bases[tied], adapter, tmp_path / "out")) <= LIMIT
