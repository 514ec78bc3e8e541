"""One file of a folder damaged in one way: missing, cut off, a bit turned, emptied, another's, or one too many."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WAYS = ("missing", "truncated", "flipped", "emptied", "another's bytes")
EXTRA = "extra"
"""A file that loaders would read and that nobody wrote; one case a folder."""


@dataclass(frozen=True)
class Damage:
    """What is done to which file."""

    name: str
    """Path of the file, relative to the folder."""
    way: str

    def __str__(self) -> str:
        """Say it for a list of failures."""
        return f"{self.name}, {self.way}"

    def do(self, folder: Path) -> None:
        """Do it, in a place of its own: what the file was a link to stays as it was, unless nothing else has it."""
        file = folder / self.name
        if self.way == EXTRA:
            file.write_bytes(b"{}")
            return
        content = file.read_bytes()
        match self.way:
            case "missing":
                file.unlink()
            case "truncated":
                file.write_bytes(content[: len(content) // 2])
            case "flipped":
                place = random.Random(self.name).randrange(len(content))
                file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            case "emptied":
                file.write_bytes(b"")
            case _:
                file.write_bytes(_other(folder, file).read_bytes())


def _other(folder: Path, file: Path) -> Path:
    """Return another file with other bytes, of the same kind where there is one."""
    content = file.read_bytes()
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path.read_bytes() != content)
    return next((path for path in others if path.suffix == file.suffix), others[0])


def damages_of(folder: Path, extra: str) -> list[Damage]:
    """List every damage to every file below a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    cases = [Damage(name, way) for name in names for way in WAYS if not (way == "another's bytes" and len(names) == 1)]
    return [*cases, Damage(extra, EXTRA)] if extra else cases


def damaged_copies(folder: Path, place: Path, damages: list[Damage]) -> Iterator[tuple[Damage, Path]]:
    """Yield a damaged copy of a folder for each damage, which is gone when the next comes."""
    for damage in damages:
        copied = place / folder.name
        shutil.copytree(folder, copied, symlinks=True)
        damage.do(copied)
        yield damage, copied
        shutil.rmtree(copied)
