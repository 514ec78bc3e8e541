"""recipe.lock.json: what the names in a recipe stood for when it was run, and the base of a run found again by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.bases import ResolvedBase, resolve_base
from finetune.errors import DataError
from finetune.recipe import Base
from finetune.run_directory import RunDirectory


class Lock(BaseModel):
    """What was used, pinned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe_sha256: str
    base: str
    """What was used: a hub model has its commit behind an @."""
    base_revision: str | None
    """What the recipe asked for."""
    base_sha256: str
    base_origin: str
    sources: dict[str, str]
    seed: int
    versions: dict[str, str]

    def pin(self, base: Base) -> Base:
        """Return a base at the commit that was used, so that a branch that moves does not move it.

        A base of another name, or asked for at another revision since, stays as it is.
        """
        name, _, commit = self.base.rpartition("@")
        if name != base.model or self.base_revision != base.revision:
            return base
        return base.model_copy(update={"revision": commit})


def load_lock(run: RunDirectory) -> Lock:
    """Read the lock of a run.

    Raises:
        DataError: the run has none, or it is damaged.
    """
    try:
        return Lock.model_validate_json(run.lock_file.read_bytes())
    except FileNotFoundError as error:
        raise DataError("the run has no lock", where=str(run.lock_file), hint="run its recipe again") from error
    except ValidationError as error:
        raise DataError(
            "the run's lock is damaged", where=str(run.lock_file), hint="remove it and run the recipe again"
        ) from error


def find_run_base(base: Base, lock: Lock, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    """Find the base of a run at the commit that it was trained on, and check that it is that one.

    Raises:
        DataError: it is another one now.
    """
    found = resolve_base(lock.pin(base), cache, announce)
    if found.sha256 != lock.base_sha256:
        what = f"the base is not the one that the run was made from (sha256 {found.sha256}, was {lock.base_sha256})"
        raise DataError(what, where=found.identity, hint="put it back, or run the recipe again")
    return found
