"""Checks a folded model module by module, from the files as they were written: no model has to fit into memory.

Random inputs go through each weight that was read back, and, unmerged, through the base's weight and the two factors
beside it. What rounding left of the change is measured too: a change below the steps of the written type is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from evaluation.files import sha256_of_folder
from evaluation.model import DTYPES
from finetune.errors import ProofFailed
from finetune.merging_shards import BaseFiles, open_base, read_weight
from finetune.peft_weights import EMBEDDING, HEAD, LowRank, PeftFolder

PROBES = 8
"""Random inputs for each weight."""
LARGEST_ERROR = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Of a folded output against the unmerged one, relative to its norm: four times the type's rounding, 1e-5 in fp32."""
LEAST_CAPTURED = 0.9
"""Share of a module's change that must be left after rounding."""


class ModuleProof(BaseModel):
    """One module: as written, against base and adapter side by side."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    module: str
    error: float
    """‖folded·x − (base·x + adapter(x))‖ / ‖base·x + adapter(x)‖ over the probes, as written."""
    captured: float | None
    """⟨written − base, change⟩ / ‖change‖²: 1 where nothing was lost; none where the module was replaced whole."""


class FoldProof(BaseModel):
    """merge.json of a merge of folders: what was compared, and how far it is off."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dtype: str
    probes: int
    """Random inputs a module, from seed 0."""
    modules: tuple[ModuleProof, ...]
    largest_error: float
    least_captured: float | None
    unchanged: int
    """Weights that are the base's own, compared bit by bit after the same rounding."""
    merged_sha256: str
    """Of the folder's files without this one."""


def prove_folded(
    base: BaseFiles, adapter: PeftFolder, merged: Path, dtype: str, advance: Callable[[int], None] = lambda _: None
) -> FoldProof:
    """Compare a written merge with its base and its adapter.

    Raises:
        ProofFailed: a module is not the sum of the two, or rounding lost the change; nothing says that it can be used.
    """
    written = open_base(merged)
    changed = {f"{module}.weight" for module in adapter.modules} | {f"{EMBEDDING}.weight", f"{HEAD}.weight"}
    modules = []
    for module in adapter.modules:
        modules.append(_compare(base, adapter, written, module))
        advance(1)
    for name in sorted(set(base.files) - changed):
        expected = read_weight(base, name).to(DTYPES[dtype])
        if not torch.equal(read_weight(written, name), expected):
            raise ProofFailed(f"{name} has no adapter and is not the base's", where=str(merged))
        advance(1)
    proof = FoldProof(
        dtype=dtype,
        probes=PROBES,
        modules=tuple(modules),
        largest_error=max(one.error for one in modules),
        least_captured=min((one.captured for one in modules if one.captured is not None), default=None),
        unchanged=len(set(base.files) - changed),
        merged_sha256=sha256_of_folder(merged),
    )
    _check(proof, str(merged))
    return proof


def _compare(base: BaseFiles, adapter: PeftFolder, written: BaseFiles, module: str) -> ModuleProof:
    folded, own = _stored(written, module).float(), _stored(base, module).float()
    change = adapter.change(module)
    if not isinstance(change, LowRank):
        expected = change.applied_to(own)
        error = float((folded - expected).norm() / expected.norm())
        return ModuleProof(module=module, error=error, captured=None)
    own = own if change.own is None else change.own.float()
    target = change.applied_to(own) if change.magnitude is not None or change.residual else None
    inputs = torch.randn(PROBES, own.shape[1], generator=torch.Generator().manual_seed(0))
    beside = inputs @ target.T if target is not None else inputs @ own.T + _through(change, inputs)
    error = float((inputs @ folded.T - beside).norm() / beside.norm())
    delta = (target if target is not None else own + change.product()) - own
    captured = float(((folded - own) * delta).double().sum() / delta.double().square().sum())
    return ModuleProof(module=module, error=error, captured=captured)


def _through(change: LowRank, inputs: Tensor) -> Tensor:
    """Send inputs through the factors one after the other, as the unmerged adapter does."""
    if change.is_embedding:
        return change.scaling * ((inputs @ change.up.float()) @ change.down.float())
    return change.scaling * ((inputs @ change.down.float().T) @ change.up.float().T)


def _stored(base: BaseFiles, module: str) -> Tensor:
    name = f"{module}.weight"
    return read_weight(base, name if name in base.files else f"{EMBEDDING}.weight")


def _check(proof: FoldProof, where: str) -> None:
    limit = LARGEST_ERROR[proof.dtype]
    for one in proof.modules:
        if not one.error <= limit:  # so that what is no number is refused, too
            raise ProofFailed(
                f"{one.module}: folded and unmerged outputs differ by {one.error:.1e}, the limit is {limit:.1e}",
                where=where,
            )
        if one.captured is not None and not one.captured >= LEAST_CAPTURED:
            raise ProofFailed(
                f"{one.module}: rounding to {proof.dtype} leaves {one.captured:.1%} of what the adapter changes",
                where=where,
                hint="write float32 (--dtype float32)",
            )
