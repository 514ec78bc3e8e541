"""The doors that a trained model is used through: a conversation becomes the same tokens at each, or none is opened.

What training rendered is the measure. The other doors are what people use afterwards: plain transformers on the
adapter's folder or on the merged one, a GGUF file, a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from evaluation.chat_text import ChatText, as_json
from evaluation.conversation import Conversation, Message
from evaluation.rendering import IGNORE, Renderer, Unrenderable
from evaluation.tokenizer import fix_date, load_tokenizer
from finetune.door_conversations import door_conversations
from finetune.errors import ProofFailed
from finetune.merge_records import DoorProof

ANSWER = Message(role="assistant", content="Three months.")
"""Put behind a conversation, so that training renders it."""


@dataclass(frozen=True)
class Door:
    """One way in: a name for people, and how it turns a conversation into token ids."""

    name: str
    ids: Callable[[Conversation], Sequence[int]]


def compare_doors(
    renderer: Renderer, doors: Sequence[Door], conversations: Iterable[Conversation]
) -> tuple[DoorProof, ...]:
    """Send conversations through every door and compare the token ids with the prompts that are scored.

    A conversation that the base's template refuses is not compared; one that everything refuses proves nothing.

    Raises:
        ProofFailed: a door gives other tokens, or no conversation could be rendered.
    """
    prompts = [(one, ids) for one in conversations if (ids := _prompt(renderer, one)) is not None]
    if not prompts:
        raise ProofFailed("the chat template refuses every conversation that the doors are tried with", where="doors")
    return tuple(_compare(door, prompts) for door in doors)


def training_door(renderer: Renderer) -> Door:
    """Return what training renders: the tokens of a whole example before its last answer."""

    def ids(conversation: Conversation) -> Sequence[int]:
        example = renderer.example(
            conversation.model_copy(update={"messages": (*conversation.messages, ANSWER)}), "final_assistant"
        )
        first = next(i for i, label in enumerate(example.labels) if label != IGNORE)
        return example.input_ids[:first]

    return Door("training", ids)


def folder_door(name: str, folder: Path) -> Door:
    """Return plain transformers on a published folder."""
    return tokenizer_door(name, load_tokenizer(folder))


def tokenizer_door(name: str, tokenizer: PreTrainedTokenizerBase) -> Door:
    """Return a tokenizer of transformers with its own chat template, used as its documentation says.

    What a template makes is made within limits first, since transformers has none.
    """
    sandboxed = ChatText(tokenizer)

    def ids(conversation: Conversation) -> Sequence[int]:
        if conversation.layout == "plain":
            return _without_end(tokenizer, tokenizer(conversation.messages[0].content).input_ids)
        sandboxed.text(conversation.messages, (), ask=True)
        messages = cast(Any, [as_json(message) for message in conversation.messages])
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return cast(list[int], rendered)

    return Door(name, ids)


def as_the_base_speaks(renderer: Renderer, conversations: Iterable[Conversation]) -> list[Conversation]:
    """Return chats for a base with a chat template; for one without, the last questions as plain texts."""
    if renderer.tokenizer.chat_template:
        return list(conversations)
    return [Conversation(messages=one.messages[-1:], layout="plain") for one in conversations]


def prompts_of(
    renderer: Renderer, conversations: Iterable[Conversation]
) -> Iterator[tuple[Conversation, tuple[int, ...]]]:
    """Yield the conversations that the template takes, each with the token ids of its prompt."""
    for conversation in conversations:
        try:
            prompt = renderer.prompt(conversation)
        except Unrenderable:
            continue
        yield conversation, prompt


def compare_tokenizers(
    name: str, own: PreTrainedTokenizerBase, written: PreTrainedTokenizerBase, count: int
) -> tuple[DoorProof, ...]:
    """Send conversations through a model's tokenizer and the one that was written from it, both on the same day.

    Raises:
        ProofFailed: as for `compare_doors`.
    """
    for one in (own, written):
        fix_date(one)
    renderer = Renderer(own)
    conversations = as_the_base_speaks(renderer, door_conversations(count))
    return compare_doors(renderer, [tokenizer_door(name, written)], conversations)


def _compare(door: Door, prompts: Sequence[tuple[Conversation, tuple[int, ...]]]) -> DoorProof:
    for conversation, expected in prompts:
        found = tuple(door.ids(conversation))
        if found != expected:
            position = next(
                (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
                min(len(found), len(expected)),
            )
            raise ProofFailed(
                f"{door.name} makes other tokens of a conversation than scoring does, from token {position} on: "
                f"{found[position : position + 4]} instead of {expected[position : position + 4]}",
                where=f"its last turn is {conversation.messages[-1].content[:40]!r}",
                hint="the folder's tokenizer or chat template was changed after training",
            )
    return DoorProof(door=door.name, conversations=len(prompts), tokens=sum(len(ids) for _, ids in prompts))


def _prompt(renderer: Renderer, conversation: Conversation) -> tuple[int, ...] | None:
    try:
        renderer.example(
            conversation.model_copy(update={"messages": (*conversation.messages, ANSWER)}), "final_assistant"
        )
        return renderer.prompt(conversation)
    except Unrenderable:
        return None


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
