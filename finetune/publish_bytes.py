"""Every text that a file holds, whatever its kind: lines, JSON strings, headers of weights, letters among bytes."""

from __future__ import annotations

import json
import mmap
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import JsonValue

SHORTEST_RUN = 6
"""Characters from which a run of letters in bytes is looked at; a path or a name is longer."""

_TEXT_SUFFIXES = {".json", ".jsonl", ".jinja", ".md", ".yaml", ".txt", ""}
_RUN = re.compile(rb"[\x20-\x7e\t\r\n]{%d,}" % SHORTEST_RUN)
_WIDE_RUN = re.compile(rb"(?:[\x20-\x7e]\x00){%d,}" % SHORTEST_RUN)
_GGUF_STRING, _GGUF_LIST = 8, 9
# Widths of GGUF's numbers by type, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
_GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class Piece:
    """A text of a file."""

    text: str
    place: Callable[[int], str]
    """Says for a character of the text where in the file it stands."""
    loose: bool
    """Letters that were found among bytes, and may stand there by chance."""


def texts_in(path: Path) -> Iterator[Piece]:
    """Yield everything in a file that can be read as text."""
    if path.stat().st_size == 0:
        return
    if path.suffix in _TEXT_SUFFIXES:
        text = _decoded(path.read_bytes())
        if text is not None:
            yield Piece(text, partial(_line, text), loose=False)
            yield from _json_piece(text) if path.suffix in (".json", ".jsonl") else ()
            return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield from _header_pieces(path, data)
        yield _runs(data, _RUN, lambda run: run.decode("ascii"))
        yield _runs(data, _WIDE_RUN, lambda run: run.decode("utf-16-le"))


def find_bytes(path: Path, value: str) -> Iterator[int]:
    """Find where a text that is not ASCII alone stands in a file, in UTF-8 or UTF-16."""
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            place = data.find(value.encode(encoding))
            if place >= 0:
                yield place


def strings_in(value: JsonValue) -> Iterator[str]:
    """Yield every text of a JSON value, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)


def _line(text: str, character: int) -> str:
    return f"line {text.count(chr(10), 0, character) + 1}"


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _json_piece(text: str) -> Iterator[Piece]:
    """Texts as they are meant: a path may be spelled with escapes."""
    if "\\" not in text:
        return
    for line in [text] if text.lstrip().startswith(("{\n", "[\n")) else text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        yield Piece("\n".join(strings_in(value)), lambda _: "in a JSON text", loose=False)


def _header_pieces(path: Path, data: mmap.mmap) -> Iterator[Piece]:
    """Texts of the header of a weights file, exactly."""
    try:
        if path.suffix == ".safetensors":
            (size,) = struct.unpack_from("<Q", data, 0)
            texts = list(strings_in(json.loads(data[8 : 8 + size])))
        elif path.suffix == ".gguf":
            texts = list(_gguf_texts(data))
        else:
            return
    except (struct.error, ValueError, IndexError, KeyError, OverflowError):
        return  # damaged: its bytes are looked through all the same
    yield Piece("\n".join(texts), lambda _: "in the header", loose=False)


def _gguf_texts(data: mmap.mmap) -> Iterator[str]:
    """Names and texts of a GGUF file's metadata, and the names of its tensors."""
    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    at = 24
    for _ in range(pairs):
        name, at = _gguf_text(data, at)
        yield name
        (kind,) = struct.unpack_from("<I", data, at)
        texts, at = _gguf_value(data, at + 4, kind)
        yield from texts
    for _ in range(tensors):
        name, at = _gguf_text(data, at)
        yield name
        (dimensions,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dimensions + 4 + 8


def _gguf_text(data: mmap.mmap, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + size].decode("utf-8", "replace"), at + 8 + size


def _gguf_value(data: mmap.mmap, at: int, kind: int) -> tuple[list[str], int]:
    if kind == _GGUF_STRING:
        text, at = _gguf_text(data, at)
        return [text], at
    if kind != _GGUF_LIST:
        return [], at + _GGUF_WIDTHS[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner not in (_GGUF_STRING, _GGUF_LIST):
        return [], at + count * _GGUF_WIDTHS[inner]
    texts: list[str] = []
    for _ in range(count):
        more, at = _gguf_value(data, at, inner)
        texts += more
    return texts, at


def _runs(data: mmap.mmap, pattern: re.Pattern[bytes], decode: Callable[[bytes], str]) -> Piece:
    """Runs of letters among bytes, one a line; what stands between two runs is no text."""
    starts, places, parts, length = [0], [0], [], 0
    for match in pattern.finditer(data):
        text = decode(match.group())
        starts.append(length)
        places.append(match.start())
        parts.append(text)
        length += len(text) + 1
    return Piece("\n".join(parts), lambda i: f"byte {places[bisect_right(starts, i) - 1]:,}", loose=True)
