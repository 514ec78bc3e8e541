"""What this program takes for granted of the libraries under it, tried before anything is trained.

Version bounds name what was tested; they do not hold where a package is patched, pinned past them or built from source.
A break here would otherwise be a wrong loss or a wrong merge without any error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import requires, version

import torch

from finetune.errors import MachineError

# What a library may answer with where a name, a parameter or a form is not what it was.
_BROKEN = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Contract:
    """One assumption about one library."""

    name: str
    """Short and unique, such as `loss_is_summed`."""
    library: str
    expects: str
    """What is taken for granted, as a clause: `Trainer counts …`."""
    probe: Callable[[], bool]
    """Whether it holds; what it raises is a break as well."""


@dataclass(frozen=True)
class Broken:
    """An assumption that does not hold here."""

    contract: Contract
    detail: str
    """What was raised instead; empty where the answer was simply another."""

    def __str__(self) -> str:
        """Name library, version and assumption."""
        library = self.contract.library
        found = f" ({self.detail})" if self.detail else ""
        return f"{library} {version(library)} breaks an assumption: {self.contract.expects}{found}"


def broken_contracts(contracts: Sequence[Contract]) -> Iterator[Broken]:
    """Try every contract; the random generators are left as they were."""
    for contract in contracts:
        with torch.random.fork_rng():
            try:
                holds, detail = contract.probe(), ""
            except (*_BROKEN, ValueError) as error:
                holds, detail = False, f"{type(error).__name__}: {error}".splitlines()[0]
        if not holds:
            yield Broken(contract, detail)


def all_contracts() -> tuple[Contract, ...]:
    """Return every contract."""
    from finetune.upstream_models import MODEL_CONTRACTS
    from finetune.upstream_training import TRAINING_CONTRACTS

    return (*TRAINING_CONTRACTS, *MODEL_CONTRACTS)


def check_contracts() -> None:
    """Check that the libraries still are what this program takes them for; a part of a second once they are imported.

    Raises:
        MachineError: names library, version, what was expected and what to install.
    """
    found = list(broken_contracts(all_contracts()))
    if not found:
        return
    libraries = sorted({broken.contract.library for broken in found})
    raise MachineError(
        "; ".join(str(broken) for broken in found),
        where="installed packages",
        hint="install what was tested: pip install " + " ".join(f"'{_tested(library)}'" for library in libraries),
    )


def _tested(library: str) -> str:
    """Return the requirement that names the tested versions of a library, such as `trl<1.17,>=1.16`."""
    stated = requires("finetune-recipes") or []
    return next((line for line in stated if re.fullmatch(rf"{library}[^\w-].*", line)), library)
