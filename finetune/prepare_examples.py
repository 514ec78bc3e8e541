"""From conversations to examples of at most `max_tokens`, chunk by chunk: an answer is never cut, every change is told.

A chunk is a pure function of its conversations and of `RenderSettings`, so that any process may make it and what was
made once is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from evaluation.conversation import Conversation, Message
from evaluation.long_texts import joined, split_example
from evaluation.mask_oracle import Row, check_masks
from evaluation.rendering import Example, Renderer, TrainOn, Unrenderable
from evaluation.tokenizer import load_tokenizer
from finetune.augmentation import augment
from finetune.recipe import Recipe
from finetune.recipe_data import Augmentation
from finetune.row_store import StoredRow

Overflow = Literal["refuse", "drop", "truncate", "split"]

TOO_LONG = "too_long"
"""Reason code of rows over the limit that the recipe neither shortens nor splits."""


@dataclass(frozen=True)
class RenderSettings:
    """Everything that decides what a conversation becomes, beside the conversation and the tokenizer."""

    train_on: TrainOn
    max_tokens: int
    overflow: Overflow
    check_masks: bool
    """Whether every mask is computed in the second way as well."""
    augmentation: Augmentation | None
    seed: int

    def as_json(self) -> JsonValue:
        """Spell the settings out, for a hash."""
        altered = self.augmentation.model_dump(mode="json") if self.augmentation else None
        plain = [self.train_on, self.max_tokens, self.overflow, self.check_masks]
        return [*plain, altered, self.seed if altered else None]


@dataclass(frozen=True)
class Outcome:
    """What became of a row, or of an altered copy of it: an example, or the reason why not.

    A text that was split has one outcome for each piece.
    """

    row: int
    """Position in the chunk."""
    copy: str = ""
    """How the copy was altered; empty for the row itself."""
    example: Example | None = None
    shortened: str = ""
    """The conversation as JSON, where its prompt was shortened."""
    reason: str = ""
    detail: str = ""
    tokens: int = 0
    """Length before anything was done about it."""


@dataclass(frozen=True)
class _Given:
    """A row's conversation, or an altered copy of it."""

    row: int
    """Position in the chunk."""
    copy: str
    conversation: Conversation


def train_settings(recipe: Recipe) -> RenderSettings:
    """Return how training rows are rendered."""
    data = recipe.data
    full = data.audit.masks == "full"
    return RenderSettings(data.train_on, data.max_tokens, data.overflow, full, data.augmentation, recipe.seed)


def validation_settings(recipe: Recipe) -> RenderSettings:
    """Return how validation rows are rendered: as those that are trained on, and never altered."""
    return replace(train_settings(recipe), augmentation=None)


def scored_settings(recipe: Recipe) -> RenderSettings:
    """Return how held-out rows are rendered: scored on their last answer whatever is trained on, and never altered."""
    return replace(validation_settings(recipe), train_on="final_assistant")


@functools.lru_cache(maxsize=1)
def load_renderer(base_folder: Path) -> Renderer:
    """Load the tokenizer of a base once for each process."""
    return Renderer(load_tokenizer(base_folder))


def render_rows(renderer: Renderer, settings: RenderSettings, rows: Sequence[StoredRow]) -> list[Outcome]:
    """Render rows; those that are too long are shortened, split or set aside, as the settings say.

    Raises:
        DataError: the template breaks its laws, or two ways to compute a mask disagree.
    """
    given = [_Given(i, "", row.parsed()) for i, row in enumerate(rows)]
    if settings.augmentation is not None:
        for i, row in enumerate(rows):
            copies = augment(given[i].conversation, row.key, settings.augmentation, settings.seed)
            given += [_Given(i, kind, conversation) for kind, conversation in copies]
    rendered = renderer.examples([one.conversation for one in given], settings.train_on)
    outcomes: list[Outcome] = []
    checked: list[Row] = []
    for one, example in zip(given, rendered, strict=True):
        if isinstance(example, Unrenderable):
            outcomes.append(Outcome(one.row, one.copy, reason=example.reason, detail=example.what))
        else:
            fitted = _fit(one, example, settings, renderer)
            outcomes += fitted
            if settings.check_masks:
                checked += _trained_on(rows[one.row].id, one.conversation, fitted)
    if settings.check_masks:
        check_masks(renderer, checked, settings.train_on)
    return outcomes


def _trained_on(name: str, conversation: Conversation, outcomes: Sequence[Outcome]) -> list[Row]:
    """Return what is learned of a conversation, as it was shortened, with its pieces put together."""
    pieces = [outcome.example for outcome in outcomes if outcome.example]
    shortened = outcomes[0].shortened
    seen = Conversation.model_validate_json(shortened) if shortened else conversation
    return [(name, seen, joined(pieces))] if pieces else []


def _fit(given: _Given, example: Example, settings: RenderSettings, renderer: Renderer) -> list[Outcome]:
    length, messages = len(example.input_ids), given.conversation.messages
    if length <= settings.max_tokens:
        return [_learnable(given, example, length)]
    if settings.overflow == "split" and given.conversation.layout == "plain" and len(messages) == 1:
        pieces = split_example(example, settings.max_tokens)
        return [Outcome(given.row, given.copy, piece, tokens=length) for piece in pieces]
    if settings.overflow == "truncate":
        return [_truncated(given, example, settings, renderer)]
    detail = f"{length} tokens, {settings.max_tokens} allowed"
    return [_set_aside(given, TOO_LONG, detail, length)]


def _learnable(given: _Given, example: Example, length: int, shortened: str = "") -> Outcome:
    if example.trained_tokens == 0:
        return _set_aside(given, "nothing_to_learn", "no token of it would be trained on", length)
    return Outcome(given.row, given.copy, example, shortened, tokens=length)


def _set_aside(given: _Given, reason: str, detail: str, length: int) -> Outcome:
    return Outcome(given.row, given.copy, reason=reason, detail=detail, tokens=length)


def _truncated(given: _Given, example: Example, settings: RenderSettings, renderer: Renderer) -> Outcome:
    length, shorter = len(example.input_ids), given.conversation
    while len(example.input_ids) > settings.max_tokens:
        cut = _shortened(shorter, len(example.input_ids) - settings.max_tokens, renderer)
        if cut is None:
            detail = f"{length} tokens; even without its prompt it is longer than {settings.max_tokens}"
            return _set_aside(given, "answer_too_long", detail, length)
        shorter = cut
        try:
            example = renderer.example(shorter, settings.train_on)
        except Unrenderable as unrenderable:
            return _set_aside(given, unrenderable.reason, unrenderable.what, length)
    return _learnable(given, example, length, shorter.model_dump_json(exclude_defaults=True))


def _shortened(conversation: Conversation, excess: int, renderer: Renderer) -> Conversation | None:
    """Cut at least one and about `excess` tokens off the end of the longest message before the answer."""
    asked = [i for i, message in enumerate(conversation.messages[:-1]) if message.role != "assistant"]
    longest = max(asked, key=lambda i: len(conversation.messages[i].content), default=None)
    if longest is None or len(conversation.messages[longest].content) <= 1:
        return None
    message = conversation.messages[longest]
    tokens = renderer.encode(message.content)
    share = max(0.0, (len(tokens) - excess) / len(tokens))
    kept = message.content[: max(1, min(len(message.content) - 1, int(len(message.content) * share)))]
    messages: list[Message] = list(conversation.messages)
    messages[longest] = message.model_copy(update={"content": kept})
    return conversation.model_copy(update={"messages": tuple(messages)})
