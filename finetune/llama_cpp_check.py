"""Proof that llama.cpp reads an exported file as transformers does: the same tokens, and the same greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from evaluation.conversation import Conversation, Message
from evaluation.rendering import Renderer
from finetune.errors import ProofFailed
from finetune.llama_cpp import open_in_llama_cpp, require_llama_cpp
from finetune.partings import LARGEST_GAP, Parting, first_parting

ANSWER_TOKENS = 32
QUESTIONS = (
    "What is the capital of France?",
    "Wie lange ist die Kündigungsfrist für Mieter?",
    "租赁期限届满后合同是否继续有效？",
    "Write a Python function that adds two numbers.",
    "Is this good news? 🎉🙂",
    "  Which of the two is larger: 3.9 or 3.11?\n",
)
"""What the answers are compared on."""


class LlamaCppProof(BaseModel):
    """What was compared with llama.cpp."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: str
    """Of llama-cpp-python, which holds llama.cpp."""
    texts: int
    """Texts and rendered prompts that were tokenized by both: all equal."""
    prompts: int
    equal: int
    """Prompts with the same greedy answer, token by token."""
    partings: tuple[Parting, ...]
    """The others, each with the gap that rounding closed."""


@dataclass(frozen=True)
class Files:
    """What llama.cpp opens."""

    model: Path
    lora: Path | None = None


def prove_with_llama_cpp(
    files: Files,
    model: torch.nn.Module,
    renderer: Renderer,
    texts: Sequence[str],
    questions: Sequence[str] = QUESTIONS,
    advance: Callable[[int], None] = lambda _: None,
) -> LlamaCppProof:
    """Compare tokens and greedy answers of a file with those of the model that transformers has loaded, in fp32.

    Raises:
        MachineError: llama.cpp is not installed.
        ProofFailed: a text has other tokens, or an answer parts where rounding does not explain it.
    """
    found = require_llama_cpp()
    prompts = [_prompt(renderer, question) for question in questions]
    stops = renderer.stop_ids()
    partings: list[Parting] = []
    context = max(len(prompt) for prompt in prompts) + ANSWER_TOKENS
    with open_in_llama_cpp(files.model, files.lora, torch.get_num_threads(), context) as llama:
        for text in texts:
            _compare_tokens(llama.tokens(text, as_text_begins=True), renderer.tokenizer(text).input_ids, text)
        for number, prompt in enumerate(prompts):
            text = renderer.text(prompt)
            _compare_tokens(llama.tokens(text, as_text_begins=False), renderer.encode(text), text)
            theirs = llama.continue_greedily(prompt, ANSWER_TOKENS, stops)
            if parting := find_parting(model, prompt, theirs, stops):
                partings.append(parting.model_copy(update={"prompt": number}))
            advance(1)
    for parting in partings:
        if not parting.gap <= LARGEST_GAP:
            raise ProofFailed(
                f"llama.cpp answers question {parting.prompt} otherwise from token {parting.position} on, which the "
                f"model finds less probable by {parting.gap:.2f} logits; rounding explains {LARGEST_GAP}",
                where=str(files.lora or files.model),
            )
    return LlamaCppProof(
        version=found,
        texts=len(texts) + len(prompts),
        prompts=len(prompts),
        equal=len(prompts) - len(partings),
        partings=tuple(partings),
    )


def _prompt(renderer: Renderer, question: str) -> tuple[int, ...]:
    layout = "chat" if renderer.tokenizer.chat_template else "plain"
    return renderer.prompt(Conversation(messages=(Message(role="user", content=question),), layout=layout))


def _compare_tokens(theirs: list[int], ours: list[int], text: str) -> None:
    if theirs != ours:
        raise ProofFailed(f"llama.cpp cuts {text[:40]!r} differently: {theirs[:8]} for {ours[:8]}")


def find_parting(
    model: torch.nn.Module, prompt: Sequence[int], theirs: Sequence[int], stops: Sequence[int]
) -> Parting | None:
    """Say where the model's own greedy answer parts from another one that is whole."""
    parting = first_parting(model, prompt, theirs)
    ended = len(theirs) == ANSWER_TOKENS or theirs[-1] in stops
    assert parting or ended, "the other answer is no whole one"
    return parting
