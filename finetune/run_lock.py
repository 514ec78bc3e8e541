"""recipe.lock.json: what the names in a recipe stood for when it was run, and the base of a run found again by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.base_hashes import hash_base_files, hash_of_files
from finetune.bases import ResolvedBase, resolve_base
from finetune.errors import DataError
from finetune.recipe import Base
from finetune.run_directory import RunDirectory

_TEMPLATED = ("chat_template.", "tokenizer_config.json")
"""How the files of a base begin that hold its chat template."""


class _Locked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LockedInputs(_Locked):
    """What went in, by content. A hash is that of sha256, as 64 hex digits."""

    base_files: dict[str, str]
    """File of the base (weights, configuration, tokenizer) → hash."""
    tokenizer_sha256: str
    """Of the tokenizer's whole definition and its special tokens."""
    chat_template_sha256: str
    row_templates: dict[str, str]
    """Row template as the recipe names it → hash of what it says."""
    task_files: dict[str, str]
    """Task that is no part of the run, as the recipe names it → hash with its samples."""
    rows: dict[str, int] | None = None
    """Source → rows in it; none before the data were prepared."""


class LockedMachine(_Locked):
    """Where the adapter was trained: what decides how sums are rounded."""

    python: str
    platform: str
    processor: str
    instructions: tuple[str, ...]
    threads: int
    """Of torch."""
    device: str
    driver: str | None
    devices: int
    """Processes that trained together."""


class LockedProgram(_Locked):
    """This program as it was."""

    code_sha256: str
    """Of the source files of both packages."""
    commit: str | None
    """Of the checkout that it ran from; none where it was installed from a package."""


class Lock(_Locked):
    """What was used, pinned."""

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
    inputs: LockedInputs | None = None
    """None in locks from before runs could be repeated by them."""
    machine: LockedMachine | None = None
    """None until something was trained."""
    program: LockedProgram | None = None
    """None where `inputs` is."""

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


def check_trained_base(adapter: Path, base: Path) -> None:
    """Check that a base is the one that a run's adapter was trained on; of an adapter without a run nothing is known.

    Its chat template may be another one: a run may have put one in place of the base's own.

    Raises:
        DataError: it is another one, or the run's lock is damaged.
    """
    run = RunDirectory(adapter.parent)
    if adapter.name != run.adapter.name or not run.lock_file.is_file():
        return
    lock, found = load_lock(run), dict(hash_base_files(base))
    if hash_of_files(found.items()) == lock.base_sha256:
        return
    trained = lock.inputs.base_files if lock.inputs else {}
    decisive = [name for name in sorted({*found, *trained}) if not name.startswith(_TEMPLATED)]
    other = [name for name in decisive if found.get(name) != trained.get(name)]
    if other:
        what = f"it was trained on {lock.base} with the sha256 {lock.base_sha256}, and this base has another {other[0]}"
        raise DataError(what, where=str(adapter), hint=f"name the folder of {lock.base}")


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
