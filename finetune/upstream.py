"""An assumption about a library, and what is said where it does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

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
            torch.manual_seed(0)
            try:
                holds, detail = contract.probe(), ""
            except (*_BROKEN, ValueError) as error:
                holds, detail = False, f"{type(error).__name__}: {error}".splitlines()[0]
        if not holds:
            yield Broken(contract, detail)
