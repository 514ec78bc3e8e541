"""Named entities as data sets write them, made into one form: a list of {"text", "label"}.

An entity is an object with its text, its place in the text, or both, or the list [start, end, label]. Places are
counted in characters from 0; the end is the place behind the last one. Entities with places come out in the order of
the text, others in the order in which they are listed.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from finetune.row_template_types import Entities
from finetune.turns import RowUnusable


@dataclass(frozen=True)
class _Entity:
    text: str
    label: str
    start: int | None
    end: int


def read_entities(entities: Entities, listed: list[JsonValue], text: str) -> list[JsonValue]:
    """Return the entities of a text, each as {"text", "label"}.

    Raises:
        RowUnusable: `bad_entity`, or `entity_not_in_text` where it is not what stands in the text.
    """
    read = [_read_entity(entities, number, entity, text) for number, entity in enumerate(listed, start=1)]
    if all(entity.start is not None for entity in read):
        read.sort(key=lambda entity: (entity.start or 0, entity.end, entity.label))
    return [{"text": entity.text, "label": entity.label} for entity in read]


def _read_entity(entities: Entities, number: int, entity: JsonValue, text: str) -> _Entity:
    if isinstance(entity, list) and len(entity) == 3:
        start, end, label = entity
        written: JsonValue = None
    elif isinstance(entity, dict):
        start, end = _first(entities.start, entity), _first(entities.end, entity)
        label, written = _first(entities.label, entity), _first(entities.text, entity)
    else:
        raise RowUnusable("bad_entity", f"entity {number} is neither an object nor [start, end, label]")
    if not isinstance(label, str) or not label.strip():
        raise RowUnusable("bad_entity", f"entity {number} has no label under {_keys(entities.label)}")
    if not (written is None or isinstance(written, str)):
        raise RowUnusable("bad_entity", f"the text of entity {number} is {type(written).__name__}")
    if start is None and end is None:
        return _found_by_text(entities, number, written, label, text)
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise RowUnusable("bad_entity", f"entity {number} does not begin and end within the {len(text)} characters")
    if written not in (None, text[start:end]):
        raise RowUnusable("entity_not_in_text", f"entity {number} is not what stands at {start} to {end}")
    return _Entity(text[start:end], label, start, end)


def _found_by_text(entities: Entities, number: int, written: str | None, label: str, text: str) -> _Entity:
    if not written:
        raise RowUnusable("bad_entity", f"entity {number} has neither a text under {_keys(entities.text)} nor a place")
    if written not in text:
        raise RowUnusable("entity_not_in_text", f"the text of entity {number} does not stand in the text")
    return _Entity(written, label, None, 0)


def _first(keys: tuple[str, ...], entity: dict[str, JsonValue]) -> JsonValue:
    return next((entity[key] for key in keys if entity.get(key) is not None), None)


def _keys(keys: tuple[str, ...]) -> str:
    return " or ".join(repr(key) for key in keys)
