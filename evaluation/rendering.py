"""Turns a conversation into token ids and marks exactly which of them are trained on and scored.

Training, scoring, chat and export all render here, so that they cannot disagree. What is produced for a chat is by
construction what plain transformers produces from the same folder: `apply_chat_template` on the whole conversation,
tokenized in one piece. The mask is found by rendering: the text before an assistant turn, with the generation prompt,
must be a prefix of the whole, as text and as tokens; what follows it up to and including the first special token is
that turn. A conversation for which this does not hold is refused, never trained on by guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from evaluation.conversation import Conversation, Message
from evaluation.errors import DataError, UserError

IGNORE = -100
"""Label of a token that is not trained on or scored, the value that torch's cross-entropy ignores by default."""

TEMPLATE_DATE = "26 Jul 2024"
"""LLaMA 3 templates print today's date into the system turn; a run must not depend on the day it is made.

This is the date that the templates themselves fall back to:
https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/tokenizer_config.json
"""

TrainOn = Literal["assistant", "final_assistant"]


class Unrenderable(UserError):
    """One conversation cannot be rendered with a certain mask; `reason` is a short code for the account."""

    def __init__(self, reason: str, detail: str) -> None:
        """Take the code and what exactly, without the conversation's text."""
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Example:
    """Token ids with labels; a label is the token's own id where it is trained on, else IGNORE. Both of shape (T,)."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def trained_tokens(self) -> int:
        """Count the labelled tokens."""
        return sum(label != IGNORE for label in self.labels)


class Renderer:
    """Renders conversations for one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer of the base; its chat template is needed for chats only."""
        added = tokenizer.added_tokens_decoder
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
        self.special_texts = tuple(sorted({str(tokenizer.convert_ids_to_tokens(i)) for i in self.special_ids}))
        self.first_ids = self._convention_at_start()

    def example(self, conversation: Conversation, train_on: TrainOn = "assistant") -> Example:
        """Render a whole conversation that ends with an assistant turn.

        Raises:
            Unrenderable: no certain mask exists for this conversation.
            DataError: the tokenizer has no chat template, or one that breaks the laws for every conversation.
        """
        self._refuse_special_text(conversation)
        if conversation.layout == "plain":
            return self._plain_example(conversation)
        turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
        ids, spans = self._chat_spans(conversation.messages, turns if train_on == "assistant" else turns[-1:])
        labels = [IGNORE] * len(ids)
        for start, stop in spans:
            labels[start:stop] = ids[start:stop]
        return Example(tuple(ids), tuple(labels))

    def prompt(self, conversation: Conversation) -> tuple[int, ...]:
        """Render what comes before an answer: token ids of shape (T,), ready for the model to continue."""
        self._refuse_special_text(conversation)
        if conversation.layout == "plain":
            return (
                *self.first_ids,
                *(i for message in conversation.messages for i in self.encode(message.content)),
            )
        return tuple(self.encode(self.chat_text(conversation.messages, ask=True)))

    def answer(self, prompt: Conversation, answer: str) -> tuple[int, ...]:
        """Return the tokens of an answer to this prompt, with the token that ends the turn."""
        messages = (*prompt.messages, Message(role="assistant", content=answer))
        example = self.example(Conversation(messages=messages, layout=prompt.layout), "final_assistant")
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

    def _chat_spans(self, messages: tuple[Message, ...], turns: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        whole = self.chat_text(messages, ask=False)
        ids = self.encode(whole)
        spans = []
        for turn in turns:
            before, upto = (
                self.chat_text(messages[:turn], ask=True),
                self.chat_text(messages[: turn + 1], ask=False),
            )
            if not (upto.startswith(before) and whole.startswith(upto)):
                raise Unrenderable(
                    "template_rewrites_history", f"the chat template changes earlier text at turn {turn + 1}"
                )
            start = len(self.encode(before))
            if ids[:start] != self.encode(before):
                raise Unrenderable(
                    "answer_merges_with_prompt",
                    f"the first characters of turn {turn + 1} merge with what comes before",
                )
            spans.append((start, self._end_of_turn(ids, start)))
        return ids, spans

    def _end_of_turn(self, ids: list[int], start: int) -> int:
        for position in range(start, len(ids)):
            if ids[position] in self.special_ids:
                return position + 1
        raise DataError(
            "the chat template ends an assistant turn without a special token, so the model would never learn to stop",
            where="base",
            hint="use a base whose chat template ends turns with its end-of-sequence or end-of-turn token",
        )

    def chat_text(self, messages: tuple[Message, ...], *, ask: bool) -> str:
        """Render a chat as text, with what asks for an answer behind it where `ask` says so."""
        if not self.tokenizer.chat_template:
            raise DataError(
                "the base has no chat template, and these rows are chats",
                where="base",
                hint="use an instruction-tuned base, or rows of a plain layout (prompt_completion, text)",
            )
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=ask,
                date_string=TEMPLATE_DATE,
            )
        )

    def encode(self, text: str) -> list[int]:
        """Tokenize text as it is; control tokens that are written out in it become themselves."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _convention_at_start(self) -> tuple[int, ...]:
        ids = self.tokenizer.encode("", add_special_tokens=True)
        return tuple(ids[:1]) if ids[:1] == [self.tokenizer.bos_token_id] else ()

    def _end_of_sequence(self) -> int:
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise DataError("the tokenizer has no end-of-sequence token", where="base")
        return end

    def _refuse_special_text(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            for special in self.special_texts:
                if special in message.content:
                    raise Unrenderable(
                        "special_token_in_text",
                        f"a message contains {special!r}, a control token of the base",
                    )
