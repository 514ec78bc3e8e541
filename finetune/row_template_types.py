"""What a row template may say: a closed, typed document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluation.conversation import Role
from finetune.sandbox import names_in

_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Column(_Part):
    """A column that the template reads."""

    doc: Annotated[str, Field(min_length=1)]
    """What stands in it."""
    required: bool = True
    """Rows without it are set aside; an optional one that is absent or null counts as empty text."""
    type: Literal["text", "text_or_integer", "list"] = "text"
    """What its values are; rows with another type are set aside."""


class Turn(_Part):
    """One message."""

    role: Role
    """Who speaks."""
    content: Annotated[str, Field(min_length=1)]
    """Jinja text (text, columns, filters, `if`, one `for` over a column)."""
    when: str | None = None
    """The turn is there only where this column has text."""


class _Template(_Part):
    name: _Name
    """What recipes call it."""
    description: Annotated[str, Field(min_length=1)]
    """One sentence for `finetune list templates`."""
    columns: Annotated[dict[_Name, Column], Field(min_length=1)]
    """Every column that is read."""
    text_column: str | None = None
    """In a classification: the column that is classified."""
    label_column: str | None = None
    """In a classification: the column with the class."""

    def _check_named(self, named: set[str]) -> None:
        named |= {name for name in (self.text_column, self.label_column) if name is not None}
        unknown, unread = named - set(self.columns), set(self.columns) - named
        if unknown:
            raise ValueError(f"not among `columns`: {', '.join(sorted(unknown))}")
        if unread:
            raise ValueError(f"columns that nothing reads: {', '.join(sorted(unread))}")


class TurnsTemplate(_Template):
    """Columns become turns: of a chat, or of plain text without a chat template."""

    kind: Literal["chat", "plain"]
    """`chat` is rendered through the base's chat template, `plain` as it is."""
    turns: Annotated[tuple[Turn, ...], Field(min_length=1, strict=False)]
    """The messages in order."""

    @model_validator(mode="after")
    def _columns_are_those_read(self) -> TurnsTemplate:
        named = {name for turn in self.turns for name in names_in(turn.content)}
        self._check_named(named | {turn.when for turn in self.turns if turn.when is not None})
        return self


class MessagesTemplate(_Template):
    """One column holds the list of messages."""

    kind: Literal["messages"]
    """Always a chat."""
    list_column: str
    """The column with the list."""
    system_column: str | None = None
    """A column with the system message, where it is not in the list."""
    role_key: str
    """Key of a message that says who speaks."""
    content_key: str
    """Key of a message that holds the text."""
    roles: dict[str, Role]
    """Who speaks, in the data's words and in ours."""
    refused_keys: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Keys that would change a message's meaning and are not rendered: rows that use them are set aside."""

    @model_validator(mode="after")
    def _columns_are_those_read(self) -> MessagesTemplate:
        self._check_named({self.list_column} | ({self.system_column} if self.system_column else set()))
        return self


RowTemplate = Annotated[TurnsTemplate | MessagesTemplate, Field(discriminator="kind")]
"""How a row becomes a conversation."""
