"""What can go wrong in a way that a user can mend, each kind with the exit code it ends the command with.

UserError             anything a user can mend
├── TaskError    2    a task file (or a recipe, in the upper package) says something that is not accepted
├── DataError    3    rows, files or hashes are not what was named
├── ProofFailed  5    a check that the result depends on did not hold
└── MachineError 6    this machine cannot do it: memory, disk, device, network
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class UserError(Exception):
    """A problem to be shown on one screen without a traceback: what, where, what would be accepted."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        """Take the sentence that says what is wrong, the file:line or key, and what to change."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  → {self.hint}" if self.hint else ""
        return f"{place}{self.what}{advice}"


class TaskError(UserError):
    """A task file says something that is not accepted."""

    exit_code = 2


class DataError(UserError):
    """Rows, files or hashes are not what was named."""

    exit_code = 3


class ProofFailed(UserError):
    """A check that the result depends on did not hold."""

    exit_code = 5


class MachineError(UserError):
    """This machine cannot do it: memory, disk, device or network."""

    exit_code = 6


def nearest(word: str, accepted: Iterable[str]) -> str:
    """Say which accepted word was probably meant, as 'did you mean …?', or list what is accepted."""
    choices = sorted(accepted)
    match = get_close_matches(word, choices, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"accepted: {', '.join(choices)}" if choices else ""
