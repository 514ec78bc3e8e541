"""What a row template may say: a closed, typed document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluation.conversation import Role
from finetune.sandbox import names_in

ColumnType = Literal["text", "text_or_integer", "text_or_lines", "list", "entities"]

_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Column(_Part):
    """A column that the template reads."""

    doc: Annotated[str, Field(min_length=1)]
    """What stands in it."""
    required: bool = True
    """Rows without it are set aside; an optional one that is absent or null counts as empty text."""
    type: ColumnType = "text"
    """What its values are; rows with another type are set aside.

    `text_or_lines` also takes a list of texts, which become its lines. A `list` may be written as JSON text, since a
    CSV file has no lists. `entities` is a list as the section `entities` describes it.
    """


class Turn(_Part):
    """One message."""

    role: Role
    """Who speaks."""
    content: Annotated[str, Field(min_length=1)]
    """Jinja text (text, columns, filters, `if`, one `for` over a column)."""
    when: str | None = None
    """The turn is there only where this column has text."""


class Entities(_Part):
    """How the named entities of a text are written down; each group of words says the same, the first found counts."""

    of: str
    """The column with the text that they stand in."""
    text: _Words
    """Keys of an entity's own text."""
    label: Annotated[_Words, Field(min_length=1)]
    """Keys of its kind."""
    start: _Words = ()
    """Keys of its first character's place in the text, counted from 0."""
    end: _Words = ()
    """Keys of the place behind its last character."""


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

    def _check_type(self, name: str | None, *accepted: ColumnType) -> None:
        if name is not None and self.columns[name].type not in accepted:
            raise ValueError(f"the column {name!r} must be of the type {' or '.join(accepted)}")


class TurnsTemplate(_Template):
    """Columns become turns: of a chat, or of plain text without a chat template."""

    kind: Literal["chat", "plain"]
    """`chat` is rendered through the base's chat template, `plain` as it is."""
    turns: Annotated[tuple[Turn, ...], Field(min_length=1, strict=False)]
    """The messages in order."""
    entities: Entities | None = None
    """How columns of the type `entities` are written."""

    @model_validator(mode="after")
    def _columns_are_those_read(self) -> TurnsTemplate:
        named = {name for turn in self.turns for name in names_in(turn.content)}
        named |= {turn.when for turn in self.turns if turn.when is not None}
        self._check_named(named | ({self.entities.of} if self.entities else set()))
        listed = any(column.type == "entities" for column in self.columns.values())
        if listed != (self.entities is not None):
            raise ValueError("the section `entities` and a column of the type entities belong together")
        self._check_type(self.entities.of if self.entities else None, "text")
        return self


class MessagesTemplate(_Template):
    """One column holds the list of messages."""

    kind: Literal["messages"]
    """Always a chat."""
    list_column: str
    """The column with the list."""
    system_column: str | None = None
    """A column with the system message, where it is not in the list."""
    tools_column: str | None = None
    """A column with the functions that may be called, as JSON schemas in a list."""
    role_key: str
    """Key of a message that says who speaks."""
    content_key: str
    """Key of a message that holds the text."""
    roles: dict[str, Role]
    """Who speaks, in the data's words and in ours."""
    text_turns: Annotated[tuple[Role, ...], Field(strict=False)] = ()
    """Who speaks, in turn, where the turns are plain texts; such turns are set aside if not given."""
    tool_calls_key: str | None = None
    """Key of a message that lists the functions which the assistant calls."""
    call_roles: _Words = ()
    """Words of `roles` whose text is not said but is the JSON of a call, or of a list of calls."""
    refused_keys: _Words = ()
    """Keys that would change a message's meaning and are not rendered: rows that use them are set aside."""

    @model_validator(mode="after")
    def _columns_are_those_read(self) -> MessagesTemplate:
        others = (self.system_column, self.tools_column)
        self._check_named({self.list_column} | {name for name in others if name is not None})
        self._check_type(self.list_column, "list")
        self._check_type(self.system_column, "text", "text_or_lines")
        self._check_type(self.tools_column, "list")
        silent = [word for word in self.call_roles if self.roles.get(word) != "assistant"]
        if silent:
            raise ValueError(f"`call_roles` names what `roles` does not give to the assistant: {', '.join(silent)}")
        return self


RowTemplate = Annotated[TurnsTemplate | MessagesTemplate, Field(discriminator="kind")]
"""How a row becomes a conversation."""
