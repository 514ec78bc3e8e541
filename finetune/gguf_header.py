"""Walks through the header of a GGUF file before a library does: every length in it has to fit into the file.

The readers of gguf 0.19 and transformers 5.23 loop as often as a length says. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from finetune.errors import DataError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NEEDED = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count")
"""Without these of a LLaMA model, transformers would build one of 7 B parameters."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its kind; 8 is a text, 9 a list."""
_TEXT, _LIST = 8, 9
_LONGEST_NAME = 65_535
_MOST_DIMENSIONS = 4
_DEEPEST_LIST = 2


def check_gguf_header(file: Path) -> None:
    """Check that a file is GGUF, that its header lies in it, and that it says how large a LLaMA model it holds.

    Raises:
        DataError: what is wrong, and at which byte.
    """
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise DataError("not a GGUF file: it does not begin with 'GGUF'", where=str(file))
        walk = _Walk(opened, file)
        version = walk.number("<I")
        if version not in VERSIONS:
            raise DataError(f"it is GGUF of version {version}; accepted: 2, 3", where=str(file))
        tensors, pairs = walk.number("<Q"), walk.number("<Q")
        for _ in range(pairs):
            walk.pair()
        for _ in range(tensors):
            walk.tensor()
    if walk.architecture != "llama":
        raise DataError(f"its architecture is {walk.architecture!r}", where=str(file), hint="accepted: llama")
    missing = [name for name in NEEDED if f"llama.{name}" not in walk.keys]
    if missing:
        raise DataError(f"it does not state llama.{missing[0]}", where=str(file))


@dataclass
class _Walk:
    opened: BinaryIO
    file: Path
    size: int = field(init=False)
    keys: set[str] = field(default_factory=set)
    architecture: str = ""

    def __post_init__(self) -> None:
        self.size = self.file.stat().st_size

    def pair(self) -> None:
        """Pass a key and its value."""
        key = self.text(_LONGEST_NAME)
        if key in self.keys:
            self.refuse(f"{key[:80]!r} stands twice")
        self.keys.add(key)
        kind = self.number("<I")
        if key == "general.architecture" and kind == _TEXT:
            self.architecture = self.text(_LONGEST_NAME)
        else:
            self.value(kind, 0)

    def value(self, kind: int, depth: int) -> None:
        """Pass one value."""
        if kind == _TEXT:
            self.skip(self.number("<Q"))
        elif kind == _LIST and depth < _DEEPEST_LIST:
            self.items(self.number("<I"), self.number("<Q"), depth + 1)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            self.refuse(f"a value of kind {kind}")

    def items(self, kind: int, count: int, depth: int) -> None:
        """Pass the values of a list; each takes a byte at least."""
        if count > self.size:
            self.refuse(f"a list of {count:,}")
        if kind in _SIZES:
            self.skip(count * _SIZES[kind])
            return
        for _ in range(count):
            self.value(kind, depth)

    def tensor(self) -> None:
        """Pass what is said of one tensor."""
        self.text(_LONGEST_NAME)
        dimensions = self.number("<I")
        if dimensions > _MOST_DIMENSIONS:
            self.refuse(f"a tensor of {dimensions:,} dimensions")
        numbers = 1
        for _ in range(dimensions):
            numbers *= self.number("<Q")
        kind, offset = self.number("<I"), self.number("<Q")
        # The smallest kind of weight takes a byte for eight numbers, and then some.
        if numbers > 8 * self.size or offset > self.size:
            self.refuse(f"a tensor of {numbers:,} numbers of kind {kind} at {offset:,}")

    def number(self, form: str) -> int:
        """Read a whole number."""
        size = struct.calcsize(form)
        data = self.opened.read(size)
        if len(data) < size:
            self.refuse("its end")
        value: int = struct.unpack(form, data)[0]
        return value

    def text(self, longest: int) -> str:
        """Read a text."""
        length = self.number("<Q")
        if length > longest:
            self.refuse(f"a name of {length:,} bytes")
        return self.opened.read(length).decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        """Pass some bytes, which have to be there."""
        if count > self.size - self.opened.tell():
            self.refuse(f"a value of {count:,} bytes")
        self.opened.seek(count, 1)

    def refuse(self, what: str) -> None:
        """Stop.

        Raises:
            DataError: always.
        """
        hint = "fetch it again; a header speaks of nothing beyond its file"
        raise DataError(
            f"cannot be read as GGUF: {what}, at byte {self.opened.tell():,}", where=str(self.file), hint=hint
        )
