"""The limits that a merge is held to, for the stage that refuses and for the report that shows them."""

from __future__ import annotations

from finetune.merge_records import GreedyProof, MergeProof
from finetune.recipe import Merge

LARGEST_RELATIVE_LOGIT_DIFFERENCE = 1e-5
"""Folded against unfolded in fp32, relative to the largest logit; docs/log.md says why not absolute."""

GAP_FACTOR = 4.0
"""Greedy answers may part at so many times the largest logit difference on the probe, a sample of all differences."""

LEAST_KL_TO_BASE = 1e-6
"""A merge nearer to the untuned base than this, in nats, has folded nothing in."""

WITHOUT_GAIN = 1.01
"""Where training did not lower the loss, the merge's may be this many times what it was as trained."""


def logits_hold(proof: MergeProof) -> bool:
    """Say whether folding changed the logits by rounding alone."""
    return proof.max_logit_difference <= LARGEST_RELATIVE_LOGIT_DIFFERENCE * max(1.0, proof.logit_scale)


def disagreements(proof: MergeProof) -> int:
    """Count the answer tokens on which the saved merge and its adapter disagree."""
    return round((1 - proof.agreement) * proof.probe_tokens)


def allowed_disagreements(proof: MergeProof, limits: Merge) -> int:
    """Count the disagreements that are allowed: one however few the tokens, since rounding breaks a tie."""
    return max(1, int((1 - limits.minimum_agreement) * proof.probe_tokens))


def agreement_holds(proof: MergeProof, limits: Merge) -> bool:
    """Say whether the saved merge answers as its adapter does."""
    return disagreements(proof) <= allowed_disagreements(proof, limits)


def differs_from_base(proof: MergeProof) -> bool:
    """Say whether anything was folded in."""
    return proof.kl_to_base >= LEAST_KL_TO_BASE


def gain_holds(proof: MergeProof, limits: Merge) -> bool:
    """Say whether enough of what was learned is kept; without a gain, whether the merge is no worse than as trained."""
    if proof.gain_kept is None:
        return proof.nll_merged <= WITHOUT_GAIN * proof.nll_as_trained
    return proof.gain_kept >= limits.minimum_gain_kept


def greedy_holds(proof: GreedyProof) -> bool:
    """Say whether every answer that parts from the adapter's does so at a tie that rounding can break."""
    return proof.largest_gap is None or proof.largest_gap <= proof.allowed_gap
