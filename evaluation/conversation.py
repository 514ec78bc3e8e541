"""What a model is trained and scored on, before it becomes tokens: messages of a conversation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant", "tool"]
Layout = Literal["chat", "plain"]


class Message(BaseModel):
    """One turn: who speaks, and the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str


class Conversation(BaseModel):
    """The messages of one example in order.

    `chat` conversations are rendered through the base's chat template. `plain` ones are the contents one after
    another with nothing between them; an end-of-sequence token follows the last assistant message. In both, exactly
    the assistant messages and the token that ends them are trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...]
    layout: Layout = "chat"

    def prompt(self) -> Conversation:
        """Return the conversation without its last message, which is what the model is asked to write."""
        return Conversation(messages=self.messages[:-1], layout=self.layout)

    def answer(self) -> str:
        """Return the text of the last message."""
        return self.messages[-1].content
