"""What a model is trained and scored on, before it becomes tokens: messages of a conversation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Role = Literal["system", "user", "assistant", "tool"]
Layout = Literal["chat", "plain"]


class ToolCall(BaseModel):
    """A function that the assistant asks to be called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: dict[str, JsonValue]
    """By name, as JSON has them."""


class Message(BaseModel):
    """One turn: who speaks, and the text; an assistant may call tools beside or instead of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


class Conversation(BaseModel):
    """The messages of one example in order.

    `chat` conversations are rendered through the base's chat template. `plain` ones are the contents one after
    another with nothing between them; an end-of-sequence token follows the last assistant message. In both, exactly
    the assistant messages and the token that ends them are trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...]
    layout: Layout = "chat"
    tools: tuple[dict[str, JsonValue], ...] = ()
    """What may be called: JSON schemas of functions, as OpenAI's chat format has them."""

    def prompt(self) -> Conversation:
        """Return the conversation without its last message, which is what the model is asked to write."""
        return self.model_copy(update={"messages": self.messages[:-1]})

    def answer(self) -> str:
        """Return the text of the last message."""
        return self.messages[-1].content
