"""Every text that a file holds, whatever its kind: lines, JSON strings, headers of weights, letters among bytes."""

from __future__ import annotations

import json
import mmap
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

SHORTEST_RUN = 6
"""Characters from which a run of letters in bytes is looked at; a path or a name is longer."""
CHUNK_BYTES = 2**26
"""Bytes that are looked at once."""
OVERLAP_BYTES = 2**16
"""Bytes that two chunks share."""

_TEXT_SUFFIXES = {".json", ".jsonl", ".jinja", ".md", ".yaml", ".yml", ".txt", ""}
_IS_LETTER = np.array([chr(byte) in "\t\r\n" or 0x20 <= byte <= 0x7E for byte in range(256)])
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
    yield _runs(path, 1)
    yield _runs(path, 2)


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


def _runs(path: Path, step: int) -> Piece:
    """Runs of letters among bytes, one a line; each letter takes `step` bytes, the second of which is 0."""
    starts, places, parts, length = [0], [0], [], 0
    for place, text in _each_run(path, step):
        starts.append(length)
        places.append(place)
        parts.append(text)
        length += len(text) + 1
    return Piece("\n".join(parts), lambda i: f"byte {places[bisect_right(starts, i) - 1]:,}", loose=True)


def _each_run(path: Path, step: int) -> Iterator[tuple[int, str]]:
    """Yield where each run begins, and its text; one that is cut by the end of a chunk is whole in the next."""
    size = path.stat().st_size
    for begin in range(0, size, CHUNK_BYTES):
        data = np.fromfile(path, np.uint8, CHUNK_BYTES + OVERLAP_BYTES, offset=begin)
        letters = _IS_LETTER[data]
        if step == 1:
            yield from _runs_of(data, letters, begin, 1)
            continue
        wide = letters[:-1] & (data[1:] == 0)
        for parity in (0, 1):
            yield from _runs_of(data[parity::2], wide[parity::2], begin + parity, 2)


def _runs_of(data: NDArray[np.uint8], letters: NDArray[np.bool_], begin: int, step: int) -> Iterator[tuple[int, str]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], letters, [False]]).view(np.int8)))
    firsts, ends = edges[::2], edges[1::2]
    long_enough = ends - firsts >= SHORTEST_RUN
    for first, end in zip(firsts[long_enough].tolist(), ends[long_enough].tolist(), strict=True):
        yield begin + first * step, data[first:end].tobytes().decode("ascii")
