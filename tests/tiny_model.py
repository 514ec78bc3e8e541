"""The model that tests run on: built here in a second, never fetched.

A two-layer LLaMA with grouped key/value heads, and a byte-level BPE trained on a few sentences, with a ChatML
template whose end-of-turn token is also the padding token, as in the smallest published LLaMA models.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.model_shape import ModelShape

SENTENCES = (
    "Which chapter does this diagnosis belong to?",
    "The patient has a fever and a cough, and was given an antibiotic.",
    "Diseases of the eye and the ear; diseases of the skin; infections; neoplasms.",
    "This clause says that you agree to the terms of the service.",
    "yes no maybe true false red green blue circle square 0 1 2 3 4 5 6 7 8 9",
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(template: str = CHATML, *, separate_pad: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>" if separate_pad else "<|im_end|>",
    )
    fast.chat_template = template
    return fast


def build_model(vocabulary: int, seed: int = 0, hidden_size: int = 64, layers: int = 2) -> LlamaForCausalLM:
    """Build a random LLaMA in fp32: 4 heads, 2 key/value heads, tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def write_tiny_base(folder: Path, seed: int = 0, hidden_size: int = 64) -> Path:
    """Write a whole base folder: weights, configuration, tokenizer, template."""
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), seed, hidden_size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(shape: ModelShape) -> LlamaConfig:
    """Return the configuration of a model of this shape."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.tied,
        attention_bias=shape.attention_bias,
        mlp_bias=shape.mlp_bias,
        attn_implementation="sdpa",
    )
