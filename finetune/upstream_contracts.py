"""What this program takes for granted of the libraries under it, tried before anything is trained.

Version bounds name what was tested; they do not hold where a package is patched, pinned past them or built from source.
A break here would otherwise be a wrong loss or a wrong merge without any error.
"""

from __future__ import annotations

import re
from importlib.metadata import requires

from finetune.errors import MachineError
from finetune.upstream import Contract, broken_contracts
from finetune.upstream_models import MODEL_CONTRACTS
from finetune.upstream_training import TRAINING_CONTRACTS


def all_contracts() -> tuple[Contract, ...]:
    """Return every contract."""
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
