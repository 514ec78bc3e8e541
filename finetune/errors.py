"""The kinds of problem that end a command of `finetune`, with their exit codes.

UserError                anything a user can mend (from the lower package)
├── RecipeError     2    the recipe says something that is not accepted; carries every problem at once
├── TaskError       2
├── DataError       3
├── TrainingStopped 4    training was stopped before its end by a guard
├── ProofFailed     5
├── MachineError    6
└── NotRepeated     7    a run that was repeated came out otherwise
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.errors import DataError, MachineError, ProofFailed, TaskError, UserError, nearest

__all__ = [
    "DataError",
    "MachineError",
    "NotRepeated",
    "Problem",
    "ProofFailed",
    "RecipeError",
    "TaskError",
    "TrainingStopped",
    "UserError",
    "nearest",
]


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: where it stands, what it is, what would be accepted."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class RecipeError(UserError):
    """The recipe says something that is not accepted; every problem is listed at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Take all problems, in the order of the file."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class TrainingStopped(UserError):
    """Training was stopped before its end by a guard: a non-finite loss, an adapter that does not move."""

    exit_code = 4


class NotRepeated(UserError):
    """A run that was repeated from its lock came out otherwise; names what differs first."""

    exit_code = 7
