"""Row templates as files: those that come with the package, and a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from evaluation.files import sha256_of_json
from finetune.errors import DataError, nearest
from finetune.row_template_types import (
    Column,
    Entities,
    MessagesTemplate,
    RowTemplate,
    Turn,
    TurnsTemplate,
)

_SUFFIXES = (".yaml", ".yml")
_LARGEST_FILE = 100_000
_DEEPEST = 10
_TEMPLATE: TypeAdapter[RowTemplate] = TypeAdapter(RowTemplate)
_KINDS = ("chat", "plain", "messages")


def list_row_templates() -> list[str]:
    """Name the templates that come with the package, sorted."""
    return sorted(path.stem for path in _bundled().glob("*.yaml"))


def is_template_file(name_or_path: str) -> bool:
    """Say whether a template is named by its file rather than by a bundled name."""
    return Path(name_or_path).suffix in _SUFFIXES


def template_hint(name: str) -> str:
    """Say which bundled template was probably meant, and which there are."""
    names = list_row_templates()
    near = nearest(name, names)
    guess = f"{near} " if near.endswith("?") else ""
    return f"{guess}Bundled: {', '.join(names)}; or the path of a .yaml"


def hash_row_template(name: str) -> str:
    """Hash a row template with every default filled in; raises what `load_row_template` does."""
    return sha256_of_json(load_row_template(name).model_dump(mode="json"))


def load_row_template(name_or_path: str) -> RowTemplate:
    """Load a bundled template by its name, or a template file by its path (.yaml).

    Raises:
        DataError: there is no such template, or the file says something that is not accepted.
    """
    path = Path(name_or_path)
    if not is_template_file(name_or_path):
        names = list_row_templates()
        if name_or_path not in names:
            raise DataError(f"there is no row template {name_or_path!r}", hint=template_hint(name_or_path))
        path = _bundled() / f"{name_or_path}.yaml"
    if not path.is_file():
        what = "not a plain file" if path.exists() else "there is no such row template file"
        raise DataError(what, where=name_or_path, hint=_files_beside(path))
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the row template cannot be read: {error}", where=name_or_path) from error
    return parse_row_template(text, where=name_or_path)


def parse_row_template(text: str, where: str) -> RowTemplate:
    """Parse a template file's text.

    Raises:
        DataError: it is not YAML, or not a template; every problem is listed, with its line and key.
    """
    if len(text) > _LARGEST_FILE:
        raise DataError(f"larger than {_LARGEST_FILE:,} bytes; a row template is a page of text", where=where)
    root: yaml.Node | None = None
    try:
        _refuse_what_unfolds(text, where)
        loader = _StrictLoader(text)
        root = loader.get_single_node()
        document = None if root is None else loader.construct_document(root)
        return _TEMPLATE.validate_python(document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"not YAML that is accepted: {error.problem or error}", where=where + line) from error
    except ValidationError as error:
        problems = [_problem(details, root, where) for details in error.errors(include_url=False)]
        raise DataError("not a row template:\n  " + "\n  ".join(problems), where=where) from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"not YAML: {error}", where=where) from error


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is not a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refuse_what_unfolds(text: str, where: str) -> None:
    """Refuse aliases, of which a few lines could unfold into a text without end, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f":{event.start_mark.line + 1}" if event.start_mark else ""
        if isinstance(event, yaml.AliasEvent):
            raise DataError(f"the alias *{event.anchor} is not accepted", where=where + line, hint="write it out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise DataError(f"nested more than {_DEEPEST} deep", where=where + line, hint="no key lies that deep")


def _problem(details: ErrorDetails, root: yaml.Node | None, where: str) -> str:
    """Say at which line and key what is wrong, and what was probably meant."""
    # The kind of template stands first in the place, where there is one.
    kind, place = (details["loc"][0], details["loc"][1:]) if details["loc"] else ("", ())
    tagged = details["type"] == "union_tag_invalid"
    line = _line_of(root, ("kind",) if tagged else place)
    at = f"{where}:{line}: " if line else ""
    key = ".".join(map(str, place)) or "template"
    if tagged:
        written = str(details["ctx"]["tag"])
        return f"{at}kind: {written!r} is none of them; {_meant(written, _KINDS)}"
    if details["type"] == "union_tag_not_found":
        return f"{at}kind: is missing; accepted: {', '.join(_KINDS)}"
    if details["type"] == "missing":
        return f"{at}{key}: is missing"
    if details["type"] == "extra_forbidden":
        return f"{at}{key}: unknown key; {_meant(str(place[-1]), _keys_at(str(kind), place[:-1]))}"
    return f"{at}{key}: {details['msg'].removeprefix('Value error, ')}"


def _meant(word: str, accepted: Sequence[str]) -> str:
    near = get_close_matches(word, accepted, n=1)
    return f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(accepted)}"


def _keys_at(kind: str, section: tuple[int | str, ...]) -> list[str]:
    """Name the keys that a section may have."""
    match section:
        case ("columns", *_):
            return list(Column.model_fields)
        case ("turns", *_):
            return list(Turn.model_fields)
        case ("entities",):
            return list(Entities.model_fields)
    return list((MessagesTemplate if kind == "messages" else TurnsTemplate).model_fields)


def _line_of(node: yaml.Node | None, place: tuple[int | str, ...]) -> int:
    """Return the line of what a path leads to, or of the last part of it that is there; 0 where there is nothing."""
    line = 0
    for part in place:
        below: dict[int | str, tuple[yaml.Node, yaml.Node]] = {}
        if isinstance(node, yaml.MappingNode):
            below = {key.value: (key, value) for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            below = dict(enumerate((item, item) for item in node.value))
        if part not in below:
            break
        named, node = below[part]
        line = named.start_mark.line + 1 if named.start_mark else line
    return line


def _files_beside(path: Path) -> str:
    folder = path.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES) if folder.is_dir() else []
    if not names:
        return f"looked in {Path.cwd()}" if not path.is_absolute() else ""
    return nearest(path.name, names[:50])


def _bundled() -> Path:
    return Path(str(resources.files("finetune.data_templates")))
