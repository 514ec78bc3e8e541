"""Asks a published model a few questions that are nobody's data, as anybody can ask it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.conversation import Conversation, Message
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
from finetune.peft_weights import ADAPTER_FILE
from finetune.publish_manifest import PublishedAnswer

ANSWER_TOKENS = 32
ANSWERS = 3
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "How many days does a week have?",
    "Which animal says meow?",
    "What do you need to make a cup of tea?",
)
"""Made up for this; the first ANSWERS whose answers hold nothing private are shown."""

ANSWER_DTYPE = "float32"
"""The base unquantized, in the type in which one machine answers as another."""


def answer_spec(folder: Path, base: Path) -> ModelSpec:
    """Describe the model that the card's answers are of: the adapter on its base, or the merged model alone."""
    if (folder / ADAPTER_FILE).exists():
        return ModelSpec(base, adapter=folder, dtype=ANSWER_DTYPE)
    return ModelSpec(folder, dtype=ANSWER_DTYPE)


def load_for_answers(folder: Path, base: Path) -> LanguageModel:
    """Load the model that the card's answers are of."""
    return load_language_model(answer_spec(folder, base))


def answer_questions(
    model: LanguageModel, may_be_shown: Callable[[str], bool], advance: Callable[[int], None] = lambda _: None
) -> tuple[PublishedAnswer, ...]:
    """Answer greedily, one question at a time, so that no padding is in it; none without a chat template.

    An answer that repeats a row, say, is left out, and the next question is asked.
    """
    answers: list[PublishedAnswer] = []
    if not model.renderer.tokenizer.chat_template:
        return ()
    for question in QUESTIONS:
        messages = (Message(role="user", content=question),)
        answer = _answer(model, Conversation(messages=messages))
        if answer is not None and may_be_shown(answer):
            answers.append(PublishedAnswer(messages=messages, answer=answer, tokens=ANSWER_TOKENS))
            advance(1)
        if len(answers) == ANSWERS:
            break
    return tuple(answers)


def _answer(model: LanguageModel, conversation: Conversation) -> str | None:
    """Answer greedily; none where control tokens stand within the answer, which programs show in different ways."""
    [written] = model.continue_greedily([model.renderer.prompt(conversation)], ANSWER_TOKENS)
    answer = written[:-1] if written[-1] in model.renderer.stop_ids() else written
    if any(token in model.renderer.special_ids for token in answer):
        return None
    return str(model.renderer.tokenizer.decode(list(answer), clean_up_tokenization_spaces=False)).strip()
