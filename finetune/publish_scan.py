"""Looks through every byte of a folder for what must not be published, and says where it stands, never what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import DataError
from finetune.privacy_kinds import find_by_form
from finetune.publish_bytes import Piece, find_bytes, texts_in
from finetune.publish_private import Private, is_distinctive
from finetune.publish_rows import RowTexts
from finetune.secret_patterns import secrets_in
from finetune.secret_values import SAMPLE_HOST

ACCEPTED_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".md", ".yaml", ".yml", ".txt", ".model"})
"""Kinds of file that are published; the texts of a licence have no suffix."""
LICENCE_FILES = re.compile(r"LICEN[CS]E.*|USE_POLICY.*|NOTICE.*", re.IGNORECASE)
"""Their texts are public, the addresses in them too."""
_VOCABULARY = frozenset({"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"})
SHOWN = 8
"""Findings that a refusal names."""
_CHANCE = 14
"""Characters of an address among weights, below which it stands there by chance."""

_BEFORE = r"(?<![\w.:/~-])"
_PATHS = (
    re.compile(_BEFORE + r"/(?:home|Users|root|tmp|mnt|var/folders|private/(?:tmp|var))/[\w.@+-]"),
    re.compile(r"(?<![A-Za-z])[A-Za-z]:\\{1,2}(?:Users|Documents and Settings)\\{1,2}[^\s\\\"]"),
    re.compile(r"\bfile://[^\s\"']", re.IGNORECASE),
)


@dataclass(frozen=True)
class Finding:
    """Something that must not be published."""

    file: str
    place: str
    """`line 3`, `byte 1,234`, or what part of the file."""
    kind: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind}"


@dataclass(frozen=True)
class _Literal:
    """Something that is this machine's own, in the ways that it may be spelled."""

    begins: str
    """Small letters without which it is not there; they are looked for first, being quicker."""
    pattern: re.Pattern[str]
    kind: str


@dataclass(frozen=True)
class _Search:
    """What is looked for in one folder."""

    private: Private
    rows: RowTexts
    literals: tuple[_Literal, ...]


def scan_folder(
    folder: Path, private: Private, rows: RowTexts, advance: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """Find paths, names, secrets, personal data and texts of rows in every file below a folder, and odd files."""
    search = _Search(private, rows, tuple(_literals(private)))
    found: dict[Finding, None] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink()):
        found |= dict.fromkeys(_in_file(path, path.relative_to(folder).as_posix(), search))
        advance(1)
    return list(found)


def refuse_findings(findings: list[Finding], where: str) -> None:
    """Stop if anything was found.

    Raises:
        DataError: names file, place and kind of the first ones.
    """
    if not findings:
        return
    lines = [f"  {finding}" for finding in findings[:SHOWN]]
    more = [f"  and {len(findings) - SHOWN:,} more"] if len(findings) > SHOWN else []
    raise DataError(
        "\n".join([f"{len(findings):,} thing(s) that must not be published; nothing is kept:", *lines, *more]),
        where=where,
        hint="take it out where it comes from (recipe, template, data), or run without it; a secret has to be revoked",
    )


def scan_text(text: str, private: Private, rows: RowTexts) -> list[Finding]:
    """Find the same in one text, such as a name or an answer, before it is written anywhere."""
    search = _Search(private, rows, tuple(_literals(private)))
    return list(_in_piece(Piece(text, lambda i: f"character {i}", loose=False), "text", search))


def _in_file(path: Path, name: str, search: _Search) -> Iterator[Finding]:
    if path.is_symlink() or not (path.suffix in ACCEPTED_SUFFIXES or LICENCE_FILES.fullmatch(path.name)):
        yield Finding(name, "the whole file", "not a kind of file that is published")
        return
    for kind, place in _in_text(name, search):
        yield Finding(name, "its name", f"{kind} ({place})")
    for piece in texts_in(path):
        yield from _in_piece(piece, name, search)
    for value, kind in _odd_values(search.private):
        yield from (Finding(name, f"byte {place:,}", kind) for place in find_bytes(path, value))


def _in_piece(piece: Piece, name: str, search: _Search) -> Iterator[Finding]:
    text = piece.text
    for pattern in _PATHS:
        yield from (Finding(name, piece.place(m.start()), "a path of a machine") for m in pattern.finditer(text))
    lowered = text.lower()
    for one in search.literals:
        if one.begins in lowered:
            yield from (Finding(name, piece.place(m.start()), one.kind) for m in one.pattern.finditer(text))
    yield from _secrets(piece, name)
    yield from _personal(piece, name)
    places = dict.fromkeys(piece.place(i) for i in search.rows.find(text))
    yield from (Finding(name, place, "text of a row") for place in places)


def _secrets(piece: Piece, name: str) -> Iterator[Finding]:
    if not secrets_in(piece.text):
        return
    start = 0
    for line in piece.text.splitlines(keepends=True):
        yield from (Finding(name, piece.place(start), kind) for kind in secrets_in(line))
        start += len(line)
    # A key that goes over several lines is found in the whole alone.
    yield from (Finding(name, "the whole file", kind) for kind in secrets_in(piece.text))


def _personal(piece: Piece, name: str) -> Iterator[Finding]:
    """E-mail in every file but a licence's text; numbers where people write: weights and vocabularies have any."""
    file = name.rpartition("/")[2]
    if LICENCE_FILES.fullmatch(file):
        return
    prose = not piece.loose and file not in _VOCABULARY and not file.endswith((".gguf", ".safetensors"))
    for found in find_by_form(piece.text, ("email", "phone", "iban", "card", "us_ssn", "cn_id"), ()):
        value = piece.text[found.start : found.stop]
        by_chance = piece.loose and len(value) < _CHANCE
        if (prose or found.kind == "email") and not by_chance and not SAMPLE_HOST.search(value.rpartition("@")[2]):
            yield Finding(name, piece.place(found.start), f"personal data: {found.kind}")


def _in_text(text: str, search: _Search) -> Iterator[tuple[str, str]]:
    for finding in _in_piece(Piece(text, lambda i: f"character {i}", loose=False), "", search):
        yield finding.kind, finding.place


def _literals(private: Private) -> Iterator[_Literal]:
    for path in private.paths:
        # /work alone may be a word of a vocabulary; below it stands what is meant.
        end = r"(?![\w-])" if path.count("/") > 1 else r"/[\w.]"
        spelled = "|".join(re.escape(form) for form in {path, path.replace("/", "\\/"), path.replace("\\", "\\\\")})
        pattern = re.compile(rf"{_BEFORE}(?:{spelled}){end}")
        yield _Literal(path.lower().rpartition("/")[2], pattern, "a path of this machine")
    for user in private.users:
        pattern = _name_pattern(user, rf"\b{re.escape(user)}@[\w-]|[/\\]{re.escape(user)}[/\\]")
        yield _Literal(user.lower(), pattern, "the user of this machine")
    for host in private.hosts:
        pattern = _name_pattern(host, rf"\w@{re.escape(host)}\b|//{re.escape(host)}\b")
        yield _Literal(host.lower(), pattern, "the name of this machine")
    for name, value in private.values:
        yield _Literal(value.lower(), re.compile(re.escape(value)), f"the value of ${name}")


def _name_pattern(name: str, context: str) -> re.Pattern[str]:
    """Where a name is meant: beside a user or host, in a path, after a key; alone if it is no word of anybody else."""
    word = rf"\b{re.escape(name)}\b"
    keyed = rf"(?:user(?:_?name)?|login|author|owner|host(?:_?name)?|machine|node)[\"']?\s*[:=]\s*[\"']?{word}"
    alone = rf"|{word}" if is_distinctive(name) else ""
    return re.compile(f"{context}|(?i:{keyed}){alone}")


def _odd_values(private: Private) -> Iterator[tuple[str, str]]:
    """Values beyond ASCII, which no run of letters shows: paths and names in other scripts."""
    named = [(path, "a path of this machine") for path in private.paths]
    named += [(user, "the user of this machine") for user in private.users]
    named += [(value, f"the value of ${name}") for name, value in private.values]
    yield from ((value, kind) for value, kind in named if not value.isascii())
