"""Checks a folded model module by module, from the files as they were written: no model has to fit into memory.

Random inputs go through each weight that was read back, and, unmerged, through the base's weight and the two factors
beside it. What rounding left of the change is measured too: a change below the steps of the written type is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from evaluation.files import hashes_of_folder, sha256_of_hashes
from evaluation.model import DTYPES
from finetune.base_files import BaseFiles, open_base, read_weight
from finetune.errors import ProofFailed
from finetune.merging_shards import brings_the_head, stays_tied
from finetune.peft_weights import EMBEDDING, HEAD, LowRank, PeftFolder

PROBES = 8
"""Random inputs for each weight."""
ROWS_AT_A_TIME = 4096
"""Rows of a weight that are compared at once, so that a vocabulary does not fill the memory."""
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
    """⟨written − base, change⟩ / ‖change‖²: 1 where nothing was lost; none where there is no such share."""


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
    files: dict[str, str] = {}
    """The folder's other files → hash; none in proofs from before they were written down."""


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
    _check_ends(base, adapter, written, dtype)
    tied = stays_tied(base, adapter)
    for module in adapter.modules:
        if module == HEAD and tied:
            continue  # the same weight as the input embedding
        modules.append(_compare(base, adapter, written, module))
        advance(1)
    for name in sorted(set(base.files) - changed):
        expected = read_weight(base, name).to(DTYPES[dtype])
        if not torch.equal(read_weight(written, name), expected):
            raise ProofFailed(f"{name} has no adapter and is not the base's", where=str(merged))
        advance(1)
    files = hashes_of_folder(merged)
    proof = FoldProof(
        dtype=dtype,
        probes=PROBES,
        modules=tuple(modules),
        largest_error=max(one.error for one in modules),
        least_captured=min((one.captured for one in modules if one.captured is not None), default=None),
        unchanged=len(set(base.files) - changed),
        merged_sha256=sha256_of_hashes(files),
        files=files,
    )
    _check(proof, str(merged))
    return proof


def _compare(base: BaseFiles, adapter: PeftFolder, written: BaseFiles, module: str) -> ModuleProof:
    change = adapter.change(module)
    if not isinstance(change, LowRank):
        expected = change.applied_to(_stored(base, module))
        return ModuleProof(module=module, error=_relative(_stored(written, module).float(), expected), captured=None)
    whole = change.applied_to(_stored(base, module)) if _needs_the_whole(change) else None
    inputs = torch.randn(PROBES, change.shape[1], generator=torch.Generator().manual_seed(0))
    through = _through(change, inputs)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, change.shape[0], ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        folded = _stored(written, module, rows).float()
        own = (_stored(base, module, rows) if change.own is None else change.own[rows]).float()
        beside = inputs @ own.T + through[:, rows] if whole is None else inputs @ whole[rows].T
        delta = change.product(rows) if whole is None else whole[rows] - own
        wrong = inputs @ folded.T - beside
        parts = (wrong.square(), beside.square(), (folded - own) * delta, delta.square())
        sums += torch.stack([part.double().sum() for part in parts])
    wrong_2, beside_2, kept, change_2 = sums.tolist()
    error = math.sqrt(wrong_2 / beside_2) if beside_2 else math.sqrt(wrong_2)
    return ModuleProof(module=module, error=error, captured=kept / change_2 if change_2 else None)


def _needs_the_whole(change: LowRank) -> bool:
    """Say whether a row of the result depends on other rows: through a decomposition, or the length of a column."""
    return change.magnitude is not None or change.residual is not None


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).norm() / max(float(expected.norm()), 1e-30))


def _through(change: LowRank, inputs: Tensor) -> Tensor:
    """Send inputs through the factors one after the other, as the unmerged adapter does."""
    if change.is_embedding:
        return change.scaling * ((inputs @ change.up.float()) @ change.down.float())
    return change.scaling * ((inputs @ change.down.float().T) @ change.up.float().T)


def _stored(base: BaseFiles, module: str, rows: slice = slice(None)) -> Tensor:
    name = f"{module}.weight"
    return read_weight(base, name if name in base.files else f"{EMBEDDING}.weight", rows)


def _check_ends(base: BaseFiles, adapter: PeftFolder, written: BaseFiles, dtype: str) -> None:
    """Check the embeddings that the adapter has no part of: the base's own, or the same weight as the other end."""
    tied = stays_tied(base, adapter)
    if tied and not written.tied:
        raise ProofFailed("the two embeddings are no longer one weight", where=str(written.folder))
    for end in {EMBEDDING, HEAD} - set(adapter.modules):
        if end == HEAD and (tied or brings_the_head(base, adapter)):
            continue  # compared as the input embedding
        found, expected = _stored(written, end), _stored(base, end).to(DTYPES[dtype])
        if not torch.equal(found, expected):
            raise ProofFailed(f"{end} has no adapter and is not the base's", where=str(written.folder))


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
