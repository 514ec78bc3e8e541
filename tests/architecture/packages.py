"""The modules of the two packages as source and syntax, for tests that judge how they are written."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("evaluation", "finetune")


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    lines: int
    tree: ast.Module

    def imported(self) -> set[str]:
        """Name every module that an import statement names, wherever it stands."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        return names


@functools.cache
def modules() -> tuple[Module, ...]:
    """Parse every module of both packages, once for all tests."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 50, "the packages are not where they are looked for"
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        name = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        found.append(Module(name, file, len(text.splitlines()), ast.parse(text)))
    return tuple(found)
