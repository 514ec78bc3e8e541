"""A recipe as written: values with their lines, and findings that point at keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from finetune.errors import Problem

Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Node:
    """A value, the line (from 1) of its key or list item, and the `--set` that put it there."""

    content: Scalar | dict[str, Node] | list[Node]
    line: int
    set_by: str = ""


@dataclass(frozen=True)
class Finding:
    """Something wrong at a key; its place is looked up in the document unless the line or place is given."""

    path: KeyPath
    what: str
    hint: str = ""
    line: int | None = None
    place: str = ""

    @property
    def is_idle(self) -> bool:
        """Say whether the key is right and gives nothing to do, beside the others."""
        return self.what.startswith("has no effect")


def dotted(path: KeyPath) -> str:
    """The key as it is written for `--set`: `data.train.0.rows`."""
    return ".".join(str(part) for part in path)


def plain(node: Node) -> JsonValue:
    """The bare values of a node."""
    if isinstance(node.content, dict):
        return {key: plain(child) for key, child in node.content.items()}
    if isinstance(node.content, list):
        return [plain(child) for child in node.content]
    return node.content


def child_at(node: Node, part: str | int) -> Node | None:
    """The node below a key or list position, if it is there."""
    if isinstance(node.content, dict) and isinstance(part, str):
        return node.content.get(part)
    if isinstance(node.content, list) and isinstance(part, int) and 0 <= part < len(node.content):
        return node.content[part]
    return None


def node_at(root: Node, path: KeyPath) -> Node | None:
    """The node at a path, if it is there."""
    node: Node | None = root
    for part in path:
        node = child_at(node, part) if node else None
    return node


def problems_of(findings: Iterable[Finding], root: Node, file: str) -> tuple[Problem, ...]:
    """Findings with their places, each once, in the order of the file; those from `--set` last."""
    placed = sorted({_placed(finding, root, file) for finding in findings}, key=lambda entry: entry[0])
    return tuple(problem for _, problem in placed)


def _placed(finding: Finding, root: Node, file: str) -> tuple[tuple[bool, int, str, str], Problem]:
    nearest_node = _deepest(root, finding.path)
    line = finding.line or nearest_node.line
    place = finding.place or ("" if finding.line else nearest_node.set_by)
    key = dotted(finding.path)
    what = f"{key}: {finding.what}" if key else finding.what
    order = (bool(place), 0 if place else line, place, what)
    return order, Problem(place or f"{file}:{line}", what, finding.hint)


def _deepest(root: Node, path: KeyPath) -> Node:
    node = root
    for part in path:
        child = child_at(node, part)
        if child is None:
            return node
        node = child
    return node
