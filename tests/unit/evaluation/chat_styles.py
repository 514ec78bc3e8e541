"""Chat templates of the LLaMA families, each beside the same thing written in Python: the oracle of the mask.

`pieces` says what a conversation looks like as text and which of it is trained on, without a template engine and
without comparing prefixes, so that it shares no reasoning with the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evaluation.conversation import Message
from evaluation.rendering import TEMPLATE_DATE

Pieces = list[tuple[str, bool]]
"""Text, and whether it is trained on."""

CORPUS = (
    "The patient has a fever and a cough.\n\nWhich chapter does this diagnosis belong to?\n\n\n  ",
    "Diseases of the eye; diseases of the skin.  \n  \n\n\n\n\tneoplasms",
    "مرحبا بالعالم، كيف الحال؟ שלום עולם",
    "北京市的天气很好。東京です。",
    "🙂🙂 👩‍⚕️👩‍⚕️ 🇨🇭",
    "<|user|>\n<|assistant|>\n[INST] [/INST] <<SYS>>\n",
)


@dataclass(frozen=True)
class Style:
    """A family's template with its control tokens."""

    name: str
    template: str
    pieces: Callable[[Sequence[Message]], Pieces]
    bos: str
    eos: str
    end_of_turn: str
    others: tuple[str, ...] = ()
    splitting: Literal["gpt2", "llama3", "sentencepiece"] = "gpt2"
    """How the family cuts text before it merges: GPT-2 splits runs of newlines, LLaMA 3 keeps them, LLaMA 1 and 2 cut
    nothing and mark spaces."""

    @property
    def specials(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.bos, self.eos, self.end_of_turn, *self.others)))


def _chatml(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        answer = message.role == "assistant"
        pieces += [(f"<|im_start|>{message.role}\n", False), (f"{message.content}<|im_end|>", answer), ("\n", False)]
    return pieces


def _llama3(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = [("<|begin_of_text|>", False)]
    for message in messages:
        date = f"Today Date: {TEMPLATE_DATE}\n\n" if message.role == "system" else ""
        pieces += [
            (f"<|start_header_id|>{message.role}<|end_header_id|>\n\n{date}", False),
            (f"{message.content.strip()}<|eot_id|>", message.role == "assistant"),
        ]
    return pieces


def _llama2(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = []
    system = ""
    for message in messages:
        if message.role == "system":
            system = f"<<SYS>>\n{message.content}\n<</SYS>>\n\n"
        elif message.role == "user":
            pieces.append((f"<s>[INST] {(system + message.content).strip()} [/INST]", False))
            system = ""
        else:
            pieces.append((f" {message.content.strip()} </s>", True))
    return pieces


def _zephyr(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        answer = message.role == "assistant"
        pieces += [(f"<|{message.role}|>\n", False), (f"{message.content}</s>", answer), ("\n", False)]
    return pieces


CHATML = Style(
    "chatml",
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    _chatml,
    bos="<|im_start|>",
    eos="<|im_end|>",
    end_of_turn="<|im_end|>",
    others=("<|endoftext|>",),
)
LLAMA_3 = Style(
    "llama3",
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['role'] == 'system' %}{{- 'Today Date: ' + date_string + '\n\n' }}{%- endif %}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    _llama3,
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    end_of_turn="<|eot_id|>",
    others=("<|start_header_id|>", "<|end_header_id|>"),
    splitting="llama3",
)
LLAMA_2 = Style(
    "llama2",
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    _llama2,
    bos="<s>",
    eos="</s>",
    end_of_turn="</s>",
    others=("<unk>",),
    splitting="sentencepiece",
)
ZEPHYR = Style(
    "zephyr",
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    _zephyr,
    bos="<s>",
    eos="</s>",
    end_of_turn="</s>",
    others=("<unk>",),
    splitting="sentencepiece",
)
STYLES = (CHATML, LLAMA_3, LLAMA_2, ZEPHYR)


LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def style_tokenizer(style: Style, separate_pad: bool = False, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Train a tokenizer of the family's kind that has learned runs of newlines and spaces, so that texts do merge."""
    controls = (*style.specials, "<|pad|>")
    tokenizer = _sentencepiece_like(controls) if style.splitting == "sentencepiece" else _byte_level(style, controls)
    if adds_bos:
        bos = (style.bos, tokenizer.token_to_id(style.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{style.bos}:0 $A:0", special_tokens=[bos])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=style.bos,
        eos_token=style.eos,
        pad_token="<|pad|>" if separate_pad else style.eos,
    )
    fast.chat_template = style.template
    return fast


def _byte_level(style: Style, controls: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if style.splitting == "llama3":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=list(controls),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def _sentencepiece_like(controls: Sequence[str]) -> Tokenizer:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    sentences = [line for text in CORPUS[:3] for line in text.splitlines()] * 3
    learned.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    words = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(list(controls))
    return tokenizer
