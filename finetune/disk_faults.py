"""Tells a full or a broken disk from a fault of the program, in whichever library's words it comes."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from finetune.disk_space import free_bytes, size_text, what_to_free
from finetune.errors import MachineError, UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FAULTY = frozenset({errno.EIO, errno.EROFS})
_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers end the words of the system's error."""


def disk_fault(error: BaseException) -> int | None:
    """Return the number of the system's error where a disk is the cause, or the cause of the cause."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        number = link.errno if isinstance(link, OSError) else None
        if number is None and (said := _RUST.search(str(link))):
            number = int(said.group(1))
        if number is None:
            number = next((one for one in FULL | FAULTY if os.strerror(one) in str(link)), None)
        if number in FULL | FAULTY:
            return number
        link = link.__cause__ or link.__context__
    return None


@dataclass(frozen=True)
class TellingDiskFaults:
    """Turns a full or broken disk that stops a block into an error that says what to do; other errors go through.

    It looks at every error, since tokenizers raises no type of its own.

    Raises:
        MachineError: what was stopped, how much is free, and what could be freed.
    """

    what: str
    folder: Path
    cache: Path | None = None

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look at what stopped the block."""
        number = disk_fault(error) if isinstance(error, Exception) and not isinstance(error, UserError) else None
        if number is not None:
            raise as_told(number, self.what, self.folder, self.cache) from error


def as_told(number: int, what: str, folder: Path, cache: Path | None) -> MachineError:
    """Say in one screen what happened to the disk, what is left, and what to do."""
    kept = "what was finished before is as it was, and the same command goes on from there"
    if number in FULL:
        free = size_text(free_bytes(folder))
        full = f"the disk is full ({free} free): {what} was stopped; {kept}"
        return MachineError(full, where=str(folder), hint=what_to_free(folder, cache))
    hint = "look at the disk (dmesg, smartctl) before anything else, or use --out on another one"
    broken = f"the disk fails ({os.strerror(number)}): {what} was stopped; {kept}"
    return MachineError(broken, where=str(folder), hint=hint)
