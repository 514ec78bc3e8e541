"""Row templates: data files that say which columns a row has, and the conversation they become."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from evaluation.conversation import Conversation, Message
from finetune.row_columns import check_columns, check_source_columns, read_columns
from finetune.row_messages import listed_conversation
from finetune.row_template_files import (
    is_template_file,
    list_row_templates,
    load_row_template,
    parse_row_template,
    template_hint,
)
from finetune.row_template_types import MessagesTemplate, RowTemplate, TurnsTemplate
from finetune.sandbox import render
from finetune.turns import RowUnusable, check_turns

__all__ = [
    "RowTemplate",
    "RowUnusable",
    "check_columns",
    "check_source_columns",
    "is_template_file",
    "list_row_templates",
    "load_row_template",
    "parse_row_template",
    "template_hint",
    "to_conversation",
]


def to_conversation(template: RowTemplate, values: Mapping[str, JsonValue], columns: Mapping[str, str]) -> Conversation:
    """Make the conversation of one row; `columns` says which source column stands for one of the template's.

    Raises:
        RowUnusable: no conversation can be made of this row.
        DataError: `columns` names a column that the template does not have.
    """
    check_columns(template, columns)
    read = read_columns(template, values, columns)
    if isinstance(template, MessagesTemplate):
        conversation = listed_conversation(template, read)
    else:
        conversation = Conversation(messages=_rendered_messages(template, read), layout=template.kind)
    check_turns(conversation.messages, conversation.layout)
    return conversation


def _rendered_messages(template: TurnsTemplate, read: Mapping[str, JsonValue]) -> tuple[Message, ...]:
    return tuple(
        Message(role=turn.role, content=render(turn.content, read))
        for turn in template.turns
        if turn.when is None or read[turn.when]
    )
