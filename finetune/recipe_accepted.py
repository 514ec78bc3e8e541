"""What the recipe accepts at each key, read from its JSON schema: messages never fall behind the types."""

from __future__ import annotations

from functools import cache

from pydantic import BaseModel, ConfigDict, Field

from finetune.recipe import Recipe
from finetune.recipe_document import KeyPath, Node, dotted, node_at


class Accepted(BaseModel):
    """The part of a JSON schema node that messages speak of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str = ""
    const: str | int | None = None
    enum: tuple[str, ...] = ()
    properties: dict[str, Accepted] = Field(default_factory=dict)
    required: tuple[str, ...] = ()
    items: Accepted | None = None
    values: bool | Accepted = Field(default=True, alias="additionalProperties")
    any_of: tuple[Accepted, ...] = Field(default=(), alias="anyOf")
    one_of: tuple[Accepted, ...] = Field(default=(), alias="oneOf")
    reference: str = Field(default="", alias="$ref")
    at_least: float | None = Field(default=None, alias="minimum")
    above: float | None = Field(default=None, alias="exclusiveMinimum")
    at_most: float | None = Field(default=None, alias="maximum")
    below: float | None = Field(default=None, alias="exclusiveMaximum")
    pattern: str = ""

    @property
    def choices(self) -> tuple[str | int, ...]:
        """The closed set of values, if it is one."""
        return self.enum or (() if self.const is None else (self.const,))


class _Schema(Accepted):
    definitions: dict[str, Accepted] = Field(default_factory=dict, alias="$defs")


def accepted_at(path: KeyPath, root: Node) -> tuple[Accepted, ...]:
    """The alternatives accepted at a path (`null` left out); none if the recipe knows no such key.

    Where a section has several forms, the one that shares most keys with the document comes alone.
    """
    schema = _schema()
    alternatives: tuple[Accepted, ...] = (schema,)
    for depth, part in enumerate(path):
        section = _closest_form(alternatives, node_at(root, path[:depth]))
        below = [found for form in section if (found := _step(form, part)) is not None]
        alternatives = tuple(leaf for node in below for leaf in _unfold(node, schema))
    return _closest_form(alternatives, node_at(root, path))


def keys_at(path: KeyPath, root: Node) -> tuple[str, ...]:
    """The keys of the section at a path."""
    return tuple(key for form in accepted_at(path, root) for key in form.properties)


def sections_with(key: str) -> tuple[str, ...]:
    """Where else the recipe has a key of this name, as dotted sections; lists stand as their first item."""
    return tuple(sorted({dotted(path) for path, form in _sections((), _schema()) if key in form.properties}))


def patterns() -> frozenset[str]:
    """Every pattern of the schema; messages need words for each."""
    forms = [form for _, section in _sections((), _schema()) for form in section.properties.values()]
    leaves = [leaf for form in forms for leaf in _unfold(form, _schema())]
    return frozenset(leaf.pattern for leaf in leaves if leaf.pattern)


@cache
def _schema() -> _Schema:
    return _Schema.model_validate(Recipe.model_json_schema())


def _step(form: Accepted, part: str | int) -> Accepted | None:
    if isinstance(part, int):
        return form.items
    if part in form.properties:
        return form.properties[part]
    return form.values if isinstance(form.values, Accepted) else None


def _unfold(node: Accepted, schema: _Schema) -> tuple[Accepted, ...]:
    if node.reference:
        return _unfold(schema.definitions[node.reference.rpartition("/")[2]], schema)
    if node.any_of or node.one_of:
        return tuple(leaf for member in (*node.any_of, *node.one_of) for leaf in _unfold(member, schema))
    return () if node.type == "null" else (node,)


def _closest_form(alternatives: tuple[Accepted, ...], node: Node | None) -> tuple[Accepted, ...]:
    sections = [form for form in alternatives if form.properties]
    if len(sections) < 2:
        return alternatives
    if node is None or not isinstance(node.content, dict):
        return alternatives
    keys = set(node.content)
    return (max(sections, key=lambda form: (len(keys & set(form.properties)), -len(form.properties))),)


def _sections(path: KeyPath, form: Accepted) -> list[tuple[KeyPath, Accepted]]:
    found: list[tuple[KeyPath, Accepted]] = [(path, form)]
    for key, value in form.properties.items():
        for leaf in _unfold(value, _schema()):
            for below, at in ((leaf, (*path, key)), *((item, (*path, key, 0)) for item in _items(leaf))):
                found += _sections(at, below) if below.properties else []
    return found


def _items(leaf: Accepted) -> tuple[Accepted, ...]:
    return _unfold(leaf.items, _schema()) if leaf.items else ()
