"""Chat templates for bases that have none, or another one than theirs: bundled .jinja files, or the user's own."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from importlib import resources
from pathlib import Path

from finetune.errors import DataError, nearest

LONGEST_FILE = 10**5
"""Characters of a template file."""

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_CONTROL_TOKEN = re.compile(r"<\|[A-Za-z0-9_]+\|>")


def list_chat_templates() -> list[str]:
    """Name the templates that come with the package, sorted."""
    return sorted(path.stem for path in _bundled().glob("*.jinja"))


def is_template_path(name_or_path: str) -> bool:
    """Say whether a template is named by its file rather than by a bundled name."""
    return Path(name_or_path).suffix == ".jinja"


def describe(name: str) -> str:
    """Return what a bundled template is for: the first paragraph of the comment at its top, on one line."""
    comment = _COMMENT.search(load_chat_template(name))
    assert comment is not None, f"{name}.jinja begins with a comment"
    return " ".join(comment.group().strip("{#-} \n").split())


def load_chat_template(name_or_path: str) -> str:
    """Load a bundled template by its name, or a template file by its path (.jinja).

    Raises:
        DataError: there is no such template, or the file cannot be read.
    """
    path = Path(name_or_path)
    if not is_template_path(name_or_path):
        names = list_chat_templates()
        if name_or_path not in names:
            hint = f"{nearest(name_or_path, names)} Bundled: {', '.join(names)}; or the path of a .jinja"
            raise DataError(f"there is no chat template {name_or_path!r}", where="base.chat_template", hint=hint)
        path = _bundled() / f"{name_or_path}.jinja"
    elif not path.is_file():
        beside = [file.name for file in path.parent.glob("*.jinja")]
        hint = nearest(path.name, beside) or f"bundled ones have no ending: {', '.join(list_chat_templates())}"
        raise DataError("there is no such chat template", where=name_or_path, hint=hint)
    try:
        with path.open("rb") as file:
            text = file.read(4 * LONGEST_FILE + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the chat template cannot be read: {error}", where=name_or_path) from error
    if len(text) > LONGEST_FILE:
        raise DataError(f"the chat template has more than {LONGEST_FILE:,} characters", where=name_or_path)
    return text


def shown_name(name_or_path: str) -> str:
    """Return what a template is called where paths of this machine do not belong."""
    return Path(name_or_path).name


def require_control_tokens(text: str, special_tokens: Collection[str], where: str) -> None:
    """Check that every <|…|> that a template writes is one token of the base, not a row of letters.

    Raises:
        DataError: names the first that is not, and what to use instead.
    """
    missing = [token for token in sorted(_control_tokens(text)) if token not in special_tokens]
    if missing:
        fitting = [n for n in list_chat_templates() if _control_tokens(load_chat_template(n)) <= set(special_tokens)]
        raise DataError(
            f"the chat template writes {missing[0]}, which is no control token of this base",
            where=where,
            hint=f"templates that fit it: {', '.join(fitting)}; a tokenizer is never given new tokens here",
        )


def special_tokens_of(folder: Path) -> frozenset[str]:
    """Read which special tokens a base's tokenizer has; none where it has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return frozenset()
    added = json.loads(file.read_bytes()).get("added_tokens", [])
    return frozenset(token["content"] for token in added if token.get("special"))


def _control_tokens(text: str) -> set[str]:
    return set(_CONTROL_TOKEN.findall(_COMMENT.sub("", text)))


def _bundled() -> Path:
    return Path(str(resources.files("finetune.data_templates")))
