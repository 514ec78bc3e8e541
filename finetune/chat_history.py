"""What was said in a chat: questions with their answers, as a prompt for the next and as a line to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evaluation.conversation import Conversation, Layout, Message
from evaluation.files import write_text
from finetune.errors import DataError
from finetune.streaming import Answer

Existing = Literal["refuse", "append", "overwrite"]


@dataclass(frozen=True)
class Exchange:
    """A question and its whole answer."""

    question: str
    answer: Answer


@dataclass(frozen=True)
class History:
    """A conversation so far."""

    system: str | None = None
    exchanges: tuple[Exchange, ...] = ()

    def prompt(self, question: str, layout: Layout) -> Conversation:
        """Return what the model is asked to continue; a plain text is continued alone, without what came before."""
        asked = Message(role="user", content=question)
        if layout == "plain":
            return Conversation(messages=(asked,), layout="plain")
        return Conversation(messages=(*self._messages(), asked))

    def with_answer(self, question: str, answer: Answer) -> History:
        """Return the conversation with one more exchange."""
        return replace(self, exchanges=(*self.exchanges, Exchange(question, answer)))

    def without_last(self) -> History:
        """Return the conversation before its last exchange."""
        return replace(self, exchanges=self.exchanges[:-1])

    def training_line(self) -> str:
        """Return the conversation as a row of the `messages` template, OpenAI's chat format.

        Raises:
            DataError: there is nothing to train on, or an answer that does not end.
        """
        if not self.exchanges:
            raise DataError("nothing was said yet", where="/save")
        for number, exchange in enumerate(self.exchanges, start=1):
            if exchange.answer.ending != "stop":
                what = f"answer {number} was cut, and whoever trains on it learns to stop there"
                raise DataError(what, where="/save", hint="/undo it, or /set max_new_tokens 1024 and /retry")
            if not exchange.answer.text:
                raise DataError(f"answer {number} is empty, and rows without text are set aside", where="/save")
        rows = [{"role": message.role, "content": message.content} for message in self._messages()]
        return json.dumps({"messages": rows}, ensure_ascii=False)

    def _messages(self) -> Iterator[Message]:
        if self.system is not None:
            yield Message(role="system", content=self.system)
        for exchange in self.exchanges:
            yield Message(role="user", content=exchange.question)
            yield Message(role="assistant", content=exchange.answer.text)


def save_line(file: Path, line: str, existing: Existing) -> None:
    """Write a row to a JSONL file, whole or not at all.

    Raises:
        DataError: something is there and nobody said what becomes of it.
    """
    if file.is_dir():
        raise DataError("this is a folder", where=str(file), hint="name a file, such as chat.jsonl")
    if file.exists() and existing == "refuse":
        raise DataError(
            "there is such a file already",
            where=str(file),
            hint=f"/save {file} append adds a line to it, /save {file} overwrite replaces it",
        )
    before = file.read_text(encoding="utf-8") if file.exists() and existing == "append" else ""
    if before and not before.endswith("\n"):
        before += "\n"
    write_text(file, f"{before}{line}\n")
