"""Applies `--set key=value` to the document, before it is validated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune.recipe_accepted import accepted_at, keys_at
from finetune.recipe_document import Finding, KeyPath, Node, child_at, dotted
from finetune.recipe_problems import unknown_key
from finetune.recipe_yaml import parse_override_value


def apply_overrides(root: Node, overrides: Sequence[str]) -> tuple[Node, list[Finding]]:
    """The document with every `a.b=value` put in, in order; `a.b=null` takes the key out.

    List items are named by their number from 0. A section that the file leaves out is added, if the recipe
    knows it.

    Raises:
        RecipeError: a value is not YAML.
    """
    findings: list[Finding] = []
    for override in overrides:
        root, problems = _apply(root, override)
        findings += problems
    return root, findings


def _apply(root: Node, override: str) -> tuple[Node, list[Finding]]:
    key, equals, text = override.partition("=")
    place = f"--set {key.strip()}"
    if not equals or not key.strip():
        hint = "write --set section.key=value, without spaces around `=`"
        return root, [Finding((), "is not a key with a value", hint, place=place)]
    value, findings = parse_override_value(text, place)
    path = _key_path(root, key.strip())
    lost = _lost(root, path, place, deleting=value.content is None)
    if lost or findings:
        inside = [Finding((*path, *finding.path), finding.what, finding.hint, place=place) for finding in findings]
        return root, [*inside, *([lost] if lost else [])]
    return _with_value(root, path, value, place), []


def stale_hashes(root: Node) -> list[Finding]:
    """Findings of hashes that belong to what `--set` has replaced: they would be refused after a long download."""
    findings: list[Finding] = []
    for path, node in _sections(root):
        replaced = next((child_at(node, key) for key in ("model", "source") if child_at(node, key)), None)
        sha256 = child_at(node, "sha256")
        if replaced and sha256 and replaced.set_by and not sha256.set_by:
            own = dotted((*path, "sha256"))
            hint = f"add --set {own}=null, or the hash of the new one"
            findings.append(Finding(path, f"{own} is the hash of what this replaces", hint, place=replaced.set_by))
    return findings


def _sections(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    if isinstance(node.content, dict):
        yield path, node
        for key, child in node.content.items():
            yield from _sections(child, (*path, key))
    elif isinstance(node.content, list):
        for position, child in enumerate(node.content):
            yield from _sections(child, (*path, position))


def _key_path(root: Node, key: str) -> KeyPath:
    """Split at the dots; a number is a position only where the document has a list."""
    path: KeyPath = ()
    node: Node | None = root
    for part in key.split("."):
        in_list = node is not None and isinstance(node.content, list)
        step: str | int = int(part) if in_list and part.isascii() and part.isdecimal() else part
        node = child_at(node, step) if node else None
        path = (*path, step)
    return path


def _lost(root: Node, path: KeyPath, place: str, *, deleting: bool) -> Finding | None:
    """What is wrong with the path itself, at the first part that leads nowhere."""
    node: Node | None = root
    for depth, step in enumerate(path):
        here, above = path[: depth + 1], path[:depth]
        if node is not None and isinstance(node.content, list):
            last = len(node.content) - 1
            if child_at(node, step) is None:
                return Finding(above, f"has no item {step}", f"items 0 to {last}", place=place)
            if deleting and here == path:
                hint = f"write the whole list: --set {dotted(above)}=[…]"
                return Finding(here, "a list item cannot be taken out", hint, place=place)
        elif not accepted_at(here, root):
            if any(form.type == "array" for form in accepted_at(above, root)):
                hint = f"write the whole list: --set {dotted(above)}=[…]"
                return Finding(above, "is a list that the recipe does not have", hint, place=place)
            if above and not keys_at(above, root):
                return Finding(above, "is a single value: it has no keys", f"--set {dotted(above)}=…", place=place)
            return Finding(here, "unknown key", unknown_key(here, root).hint, place=place)
        node = child_at(node, step) if node else None
    return None


def _with_value(node: Node, path: KeyPath, value: Node, place: str) -> Node:
    step = path[0]
    below = value if len(path) == 1 else _with_value(child_at(node, step) or Node({}, 0, place), path[1:], value, place)
    if isinstance(node.content, list):
        assert isinstance(step, int)
        items = [below if position == step else item for position, item in enumerate(node.content)]
        return Node(items, node.line, node.set_by)
    entries = dict(node.content) if isinstance(node.content, dict) else {}
    if below.content is None:
        entries.pop(str(step), None)
    else:
        entries[str(step)] = below
    return Node(entries, node.line, node.set_by)
