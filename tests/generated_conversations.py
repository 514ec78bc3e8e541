"""Conversations of every awkward kind, drawn from a seed: what the laws on masks and chat templates are tried on."""

from __future__ import annotations

import random
from collections.abc import Iterator

from evaluation.conversation import Conversation, Message, Role

WORDS = (
    "fever", "the", "Diagnosis", "x", "3.14159", "2026-11-25", "1,000,000", "l'eau", "Ångström", "naïve", "§ 12 (3)",
    "北京市的天气很好", "東京です。", "مرحبا بالعالم", "שלום עולם", "हिन्दी", "🙂", "👩‍⚕️", "🇨🇭🇨🇭", "👨‍👩‍👧‍👦", "é",
    "\u200f", "\ufeff", "\u00a0",
    "{{ messages }}", "{% if x %}", "</think>", "<think>", "```python\nx = 1\n```", '{"a": "b\\n"}', "\\n", "%s",
    "&lt;",
)  # fmt: skip
TEMPLATE_WORDS = (
    "assistant\n", "user", "[INST]", "[/INST]", "<<SYS>>", "USER:", "ASSISTANT:", "### Response:\n", "### Instruction:",
    "<|eot_id", "|im_end|>", "< /s>", "Content0Of2Here", "Begins0x0Content", "Ends0x0Content",
)  # fmt: skip
CONTROL_TEXTS = (
    "</s>",
    "<s>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|pad|>",
    "<unk>",
)
EDGES = ("", "", "", "", "", "", " ", "  ", "\n", "\n\n", "\n\n\n\n", "\t", "\r\n", " \n ", "\u2003")
BLANKS = ("", " ", "\n", "\n\n\n", " \t ", "\u00a0")


def conversations(count: int, seed: int = 0) -> Iterator[Conversation]:
    """Yield conversations of one to eight turns, with and without a system turn; one in eight is a plain text."""
    draw = random.Random(seed)
    for _ in range(count):
        kind = draw.random()
        if kind < 0.125:
            yield _plain(draw)
            continue
        roles: list[Role] = ["system"] if draw.random() < 0.3 else []
        roles += ["user", "assistant"] * draw.choice((1, 1, 2, 2, 3, 4, 5, 6, 7, 8))
        yield Conversation(messages=tuple(Message(role=role, content=text(draw)) for role in roles))


def text(draw: random.Random) -> str:
    """Draw a text; about one in eighty is blank and one in eighty holds a control token of some tokenizer."""
    kind = draw.random()
    if kind < 0.0125:
        return draw.choice(BLANKS)
    if kind < 0.025:
        return f"{_words(draw)} {draw.choice(CONTROL_TEXTS)}{_words(draw)}"
    if kind < 0.035:
        return draw.choice(("long", "北", "🙂", "9")) * draw.randint(50, 250)
    return draw.choice(EDGES) + _words(draw) + draw.choice(EDGES)


def _words(draw: random.Random) -> str:
    pool = TEMPLATE_WORDS if draw.random() < 0.1 else WORDS
    return draw.choice(("", " ", " ", "\n", "\n\n", "  ")).join(draw.choices(pool, k=draw.randint(1, 6)))


def _plain(draw: random.Random) -> Conversation:
    roles: list[Role] = draw.choice((["assistant"], ["user", "assistant"], ["user", "assistant", "user", "assistant"]))
    return Conversation(messages=tuple(Message(role=role, content=text(draw)) for role in roles), layout="plain")
