"""Turns a conversation into token ids and marks exactly which of them are trained on and scored.

Training, scoring, chat and export all render here, so that they cannot disagree. What is produced for a chat is by
construction what plain transformers produces from the same folder: `apply_chat_template` on the whole conversation,
tokenized in one piece. The mask is found by rendering: the text before an assistant turn, with the generation prompt,
must be a prefix of the whole, as text and as tokens; what follows it up to and including the first special token is
that turn. Where the template trims a message, the trimmed text is what is trained on. A conversation for which this
does not hold is refused, never trained on by guess.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from evaluation.chat_template import TEMPLATE_DATE, Unrenderable
from evaluation.chat_text import ChatText, RenderedChat, Tools, Turn, texts_of
from evaluation.conversation import Conversation, Message
from evaluation.errors import DataError

__all__ = ["IGNORE", "TEMPLATE_DATE", "Example", "Renderer", "TrainOn", "Unrenderable"]

IGNORE = -100
"""Label of a token that is not trained on or scored, the value that torch's cross-entropy ignores by default."""

_MOST_ENDINGS = 1024  # ends of prompts whose tokens are remembered: most chats have the same

TrainOn = Literal["assistant", "final_assistant"]


@dataclass(frozen=True)
class Example:
    """Token ids with labels; a label is the token's own id where it is trained on, else IGNORE. Both of shape (T,)."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def trained_tokens(self) -> int:
        """Count the labelled tokens."""
        return len(self.labels) - self.labels.count(IGNORE)


@dataclass(frozen=True)
class _SpecialPlaces:
    """Special tokens of a text in order."""

    tokens: list[int]
    """Positions among the tokens."""
    starts: list[int]
    """Characters that they begin at."""


class Renderer:
    """Renders conversations for one tokenizer and its chat template; not for several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer of the base; its chat template is needed for chats only."""
        added = tokenizer.added_tokens_decoder
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
        self._id_of_special = {str(tokenizer.convert_ids_to_tokens(i)): i for i in self.special_ids}
        self.special_texts = tuple(sorted(self._id_of_special))
        self.first_ids = self._convention_at_start()
        longest_first = sorted(self.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._chat = ChatText(tokenizer)
        self._endings: dict[str, list[int]] = {}

    def example(self, conversation: Conversation, train_on: TrainOn = "assistant") -> Example:
        """Render a whole conversation that ends with an assistant turn.

        Raises:
            Unrenderable: no certain mask exists for this conversation.
            DataError: the tokenizer has no chat template, or one that breaks the laws for every conversation.
        """
        [example] = self.examples([conversation], train_on)
        if isinstance(example, Unrenderable):
            raise example
        return example

    def examples(
        self, conversations: Sequence[Conversation], train_on: TrainOn = "assistant"
    ) -> list[Example | Unrenderable]:
        """Render conversations as `example` does, tokenizing them together; what cannot be rendered says why.

        Raises:
            DataError: the tokenizer has no chat template, or one that breaks the laws for every conversation.
        """
        texts = [self._chat_text_of(conversation, train_on) for conversation in conversations]
        chats = [chat for chat in texts if isinstance(chat, RenderedChat)]
        tokenized = self._encode_batch([chat.whole for chat in chats])
        found: list[Example | Unrenderable] = []
        for conversation, text in zip(conversations, texts, strict=True):
            try:
                if isinstance(text, RenderedChat):
                    found.append(self._chat_example(text, next(tokenized)))
                else:
                    found.append(text or self._plain_example(conversation))
            except Unrenderable as unrenderable:
                found.append(unrenderable)
        return found

    def prompt(self, conversation: Conversation) -> tuple[int, ...]:
        """Render what comes before an answer: token ids of shape (T,), ready for the model to continue."""
        self._refuse_special_text(conversation)
        if conversation.layout == "plain":
            return (
                *self.first_ids,
                *(i for message in conversation.messages for i in self.encode(message.content)),
            )
        return tuple(self.encode(self.chat_text(conversation.messages, conversation.tools, ask=True)))

    def answer(self, prompt: Conversation, answer: str) -> tuple[int, ...]:
        """Return the tokens of an answer to this prompt, with the token that ends the turn."""
        messages = (*prompt.messages, Message(role="assistant", content=answer))
        example = self.example(prompt.model_copy(update={"messages": messages}), "final_assistant")
        return tuple(label for label in example.labels[len(self.prompt(prompt)) :] if label != IGNORE)

    def stop_ids(self) -> tuple[int, ...]:
        """Return the tokens that end an answer: the tokenizer's end of sequence and the template's end of turn."""
        stops = {self._end_of_sequence()}
        if self.tokenizer.chat_template:
            probe = Conversation(messages=(Message(role="user", content="a"), Message(role="assistant", content="b")))
            stops.add([label for label in self.example(probe).labels if label != IGNORE][-1])
        return tuple(sorted(stops))

    def text(self, ids: tuple[int, ...]) -> str:
        """Decode token ids as they are, special tokens included."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _plain_example(self, conversation: Conversation) -> Example:
        ids = list(self.first_ids)
        labels = [IGNORE] * len(ids)
        for message in conversation.messages:
            piece = self.encode(message.content)
            ids += piece
            labels += piece if message.role == "assistant" else [IGNORE] * len(piece)
        end = self._end_of_sequence()
        labels = [*labels, end]
        labels[0] = IGNORE  # nothing comes before the first token, so nothing can predict it
        return Example((*ids, end), tuple(labels))

    def chat_text(self, messages: tuple[Message, ...], tools: Tools = (), *, ask: bool) -> str:
        """Render a chat as text, with what asks for an answer behind it where `ask` says so.

        Raises:
            Unrenderable: the template refuses these messages.
            DataError: there is no template, or it is not accepted.
        """
        return self._chat.text(messages, tools, ask=ask)

    def encode(self, text: str) -> list[int]:
        """Tokenize text as it is; control tokens that are written out in it become themselves."""
        return list(self._backend().encode(text, add_special_tokens=False).ids)

    def _chat_text_of(self, conversation: Conversation, train_on: TrainOn) -> RenderedChat | Unrenderable | None:
        """Render a chat as text; None for a plain conversation."""
        try:
            self._refuse_special_text(conversation)
            if conversation.layout == "plain":
                return None
            turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
            return self._chat.rendered(conversation, turns if train_on == "assistant" else turns[-1:])
        except Unrenderable as unrenderable:
            return unrenderable

    def _chat_example(self, chat: RenderedChat, ids: list[int]) -> Example:
        special = self._special_places(chat.whole, ids)
        labels = [IGNORE] * len(ids)
        for turn in chat.turns:
            start = self._start_of_turn(chat, turn, ids, special)
            stop = self._end_of_turn(turn, start, special)
            labels[start:stop] = ids[start:stop]
        return Example(tuple(ids), tuple(labels))

    def _special_places(self, whole: str, ids: list[int]) -> _SpecialPlaces:
        """Find where special tokens stand, among the tokens and in the text: a text has them in the same order.

        The tokenizer is asked where its tokens stand only if it reads other special tokens in the text than are
        written there, as those do that count alone between spaces.
        """
        tokens = [i for i, token in enumerate(ids) if token in self.special_ids]
        written = list(self._special.finditer(whole))
        if [self._id_of_special[found.group()] for found in written] == [ids[i] for i in tokens]:
            return _SpecialPlaces(tokens, [found.start() for found in written])
        offsets = self._backend().encode(whole, add_special_tokens=False).offsets
        return _SpecialPlaces(tokens, [offsets[i][0] for i in tokens])

    def _start_of_turn(self, chat: RenderedChat, turn: Turn, ids: list[int], special: _SpecialPlaces) -> int:
        """Find the token that a turn begins with, such that those before it are those of the prompt alone.

        Text is cut at special tokens before it is tokenized, so up to the last special token of the prompt its tokens
        are the same whatever follows; only the rest of the prompt is tokenized again.
        """
        before = bisect_left(special.starts, turn.start)
        last, begin = (special.tokens[before - 1], special.starts[before - 1]) if before else (0, 0)
        ending = self._encode_ending(chat.whole[begin : turn.start])
        if ids[last : last + len(ending)] != ending:
            raise Unrenderable(
                "answer_merges_with_prompt",
                f"the first characters of turn {turn.number + 1} merge with what comes before",
            )
        return last + len(ending)

    def _end_of_turn(self, turn: Turn, start: int, special: _SpecialPlaces) -> int:
        """Find the end of a turn: its first special token, or its last where it calls tools, which may contain some."""
        inside = special.tokens[bisect_left(special.tokens, start) : bisect_left(special.starts, turn.stop)]
        if not inside:
            raise DataError(
                "the chat template ends an assistant turn without a special token, so the model would never learn to "
                "stop",
                where="base",
                hint="use a base whose chat template ends turns with its end-of-sequence or end-of-turn token, or name "
                "another template in `base.chat_template`",
            )
        return (inside[-1] if turn.calls_tools else inside[0]) + 1

    def _encode_ending(self, text: str) -> list[int]:
        known = self._endings.get(text)
        if known is None:
            known = self.encode(text)
            if len(self._endings) < _MOST_ENDINGS:
                self._endings[text] = known
        return known

    def _encode_batch(self, texts: list[str]) -> Iterator[list[int]]:
        """Tokenize texts, without where the tokens stand, which costs a tenth."""
        encodings = self._backend().encode_batch_fast(texts, add_special_tokens=False)
        return (encoding.ids for encoding in encodings)

    def _backend(self) -> Tokenizer:
        """Return the fast tokenizer, which transformers sets to cut and pad as its last caller wished."""
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return backend

    def _convention_at_start(self) -> tuple[int, ...]:
        plain = self.tokenizer.encode("a", add_special_tokens=False)
        ids = self.tokenizer.encode("a", add_special_tokens=True)
        # In front of the text: a tokenizer whose BOS is its EOS may add it behind alone.
        begins = ids[:1] == [self.tokenizer.bos_token_id] and ids[1 : 1 + len(plain)] == plain
        return tuple(ids[:1]) if begins else ()

    def _end_of_sequence(self) -> int:
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise DataError("the tokenizer has no end-of-sequence token", where="base")
        return end

    def _refuse_special_text(self, conversation: Conversation) -> None:
        for text in texts_of(conversation):
            special = self._special.search(text)
            if special:
                detail = f"a message contains {special.group()!r}, a control token of the base"
                raise Unrenderable("special_token_in_text", detail)
