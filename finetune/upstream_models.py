"""Contracts with transformers' models and tokenizers, peft, bitsandbytes, the hub and the files they write."""

from __future__ import annotations

import inspect
import json
import types
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from huggingface_hub import HfApi, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from finetune.upstream import Contract
from finetune.upstream_training import small_llama

_CLOSE = 1e-4
"""Of hidden states of size 1 computed in two ways in fp32; a leak between examples is a thousand times as large."""


def _packed_examples_do_not_see_each_other() -> bool:
    model, ids = small_llama(), torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        together = _hidden(model, ids, position_ids=positions)[:, 3:]
        alone = _hidden(model, ids[:, 3:])
    return torch.allclose(together, alone, atol=_CLOSE)


def _padding_on_the_right_changes_nothing() -> bool:
    model, ids = small_llama(), torch.tensor([[1, 2, 3, 4, 0, 0]])
    with torch.no_grad():
        padded = _hidden(model, ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))[:, :4]
        alone = _hidden(model, ids[:, :4])
    return torch.allclose(padded, alone, atol=_CLOSE)


def _hidden(model: Any, ids: torch.Tensor, **how: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, model.base_model(input_ids=ids, use_cache=False, **how).last_hidden_state)


def _forward_can_be_replaced() -> bool:
    model = small_llama()
    model.forward = types.MethodType(lambda self, **_: "ours", model)
    head = cast(Any, model.get_output_embeddings()).weight
    tied = head.data_ptr() == cast(Any, model.get_input_embeddings()).weight.data_ptr()
    return cast(Any, model)(input_ids=None) == "ours" and model.base_model is model.model and tied


def _adapted() -> PeftModel:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["o_proj"], bias="none")
    return cast(PeftModel, get_peft_model(small_llama(), config))


def _keys_of_adapters() -> bool:
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    found = get_peft_model_state_dict(_adapted(), save_embedding_layers=False)
    return set(found) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}


def _adapters_begin_as_nothing() -> bool:
    weights = get_peft_model_state_dict(_adapted(), save_embedding_layers=False)
    return all(bool(value.any()) == ("lora_A" in name) for name, value in weights.items())


def _embeddings_are_saved_only_if_asked() -> bool:
    parameters = inspect.signature(PeftModel.save_pretrained).parameters
    return "save_embedding_layers" in parameters and "safe_serialization" in parameters


def _folding_gives_the_model_back() -> bool:
    adapted = _adapted()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.5)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        merged = cast(Any, adapted).merge_and_unload(safe_merge=True)
        after = merged(input_ids=ids).logits
    plain = not any("lora" in name for name, _ in merged.named_parameters())
    return plain and torch.allclose(before, after, atol=_CLOSE * float(before.abs().max()))


def _small_quantized() -> Linear4bit:
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    weight = torch.randn(64, 64)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
    return layer.to("cpu").eval()


def _repacking_can_be_switched_off() -> bool:
    """bitsandbytes 0.50 repacks NF4 weights at the first forward in evaluation mode, which loses their gradients."""
    layer = _small_quantized()
    known = "support_avx512bf16_for_cpu" in layer.__dict__
    layer.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        layer(torch.ones(1, 64))
    return known and not getattr(cast(Any, layer.weight).quant_state, "packing_format_for_cpu", False)


def _quantized_weights_can_be_read() -> bool:
    layer = _small_quantized()
    layer.support_avx512bf16_for_cpu = False
    dense = dequantize_4bit(layer.weight.data, cast(Any, layer.weight).quant_state).float()
    with torch.no_grad():
        computed = layer(torch.eye(64)).T
    return dense.shape == (64, 64) and torch.allclose(computed, dense, atol=1e-2)


def _small_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "user": 1, "é": 2, "b": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{% endfor %}"
    return fast


def _chats_become_lists() -> bool:
    tokenizer, chat = _small_tokenizer(), [{"role": "user", "content": "é b"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    return text == "user é b" and list(ids) == [1, 2, 3]


def _places_are_counted_in_characters() -> bool:
    backend = _small_tokenizer().backend_tokenizer
    [encoding] = backend.encode_batch(["é b"], add_special_tokens=False)
    return (encoding.ids, list(encoding.offsets)) == ([2, 3], [(0, 1), (2, 3)])


def _places_change_no_ids() -> bool:
    backend = _small_tokenizer().backend_tokenizer
    [quick] = backend.encode_batch_fast(["é b"], add_special_tokens=False)
    return list(quick.ids) == [2, 3]


def _gguf_of_llama_is_read() -> bool:
    return "llama" in GGUF_SUPPORTED_ARCHITECTURES


def _files_have_their_names() -> bool:
    return (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) == ("model.safetensors", "model.safetensors.index.json")


def _adapter_files_have_their_names() -> bool:
    return (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME) == ("adapter_model.safetensors", "adapter_config.json")


def _types_have_their_names() -> bool:
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    data = save({name: torch.zeros(1, dtype=kind) for name, kind in kinds.items()})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return all(header[name]["dtype"] == name for name in kinds)


def _downloads_are_pinned_and_chosen() -> bool:
    wanted = {"revision", "cache_dir", "allow_patterns", "local_files_only", "endpoint", "repo_type"}
    commit = inspect.signature(HfApi.create_commit).parameters
    return wanted <= set(inspect.signature(snapshot_download).parameters) and "parent_commit" in commit


MODEL_CONTRACTS = (
    Contract(
        "packed_mask",
        "transformers",
        "positions that begin anew keep packed examples apart, without a mask and a cache",
        _packed_examples_do_not_see_each_other,
    ),
    Contract(
        "padding_mask",
        "transformers",
        "padding on the right, masked, changes no token before it",
        _padding_on_the_right_changes_nothing,
    ),
    Contract(
        "llama_parts",
        "transformers",
        "LlamaForCausalLM has base_model, get_output_embeddings and a forward that can be replaced on the instance",
        _forward_can_be_replaced,
    ),
    Contract("adapter_keys", "peft", "adapter tensors are named base_model.model.….lora_A.weight", _keys_of_adapters),
    Contract("adapter_start", "peft", "lora_B begins as zero and lora_A does not", _adapters_begin_as_nothing),
    Contract(
        "saved_embeddings",
        "peft",
        "save_pretrained takes save_embedding_layers, which we switch off",
        _embeddings_are_saved_only_if_asked,
    ),
    Contract(
        "folding", "peft", "merge_and_unload(safe_merge=True) gives the plain model back", _folding_gives_the_model_back
    ),
    Contract(
        "no_repacking",
        "bitsandbytes",
        "Linear4bit.support_avx512bf16_for_cpu = False keeps weights unpacked",
        _repacking_can_be_switched_off,
    ),
    Contract(
        "dequantizing",
        "bitsandbytes",
        "dequantize_4bit gives the weights that Linear4bit computes with, (out, in)",
        _quantized_weights_can_be_read,
    ),
    Contract(
        "chat_ids",
        "transformers",
        "apply_chat_template(return_dict=False) returns token ids, and text where tokenize is off",
        _chats_become_lists,
    ),
    Contract("offsets", "tokenizers", "encode_batch gives offsets in characters", _places_are_counted_in_characters),
    Contract("fast_ids", "tokenizers", "encode_batch_fast gives ids as encode_batch does", _places_change_no_ids),
    Contract("gguf", "transformers", "GGUF files of the architecture `llama` are read", _gguf_of_llama_is_read),
    Contract(
        "weight_files",
        "transformers",
        "weights are model.safetensors, with an index beside",
        _files_have_their_names,
    ),
    Contract(
        "adapter_files",
        "peft",
        "an adapter is adapter_model.safetensors and adapter_config.json",
        _adapter_files_have_their_names,
    ),
    Contract("dtype_names", "safetensors", "types are BF16, F16 and F32 in a file's header", _types_have_their_names),
    Contract(
        "downloads",
        "huggingface_hub",
        "snapshot_download takes revision and allow_patterns, create_commit takes parent_commit",
        _downloads_are_pinned_and_chosen,
    ),
)
