"""What the merge and its proofs write: candidates, ways in to the model, and answers compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.records import Record

MERGE_FILE = "merge.json"
"""The proof of a merge, beside the merged weights."""


class MergeCandidate(Record):
    """One way of folding, measured on the validation rows."""

    onto: Literal["full_precision", "dequantized"]
    validation_nll: float | None
    """Mean negative log-likelihood of the answers as saved, in nats; none without validation rows."""


class DoorProof(Record):
    """One way in to the trained model: conversations became the token ids that scoring makes of them, all of them."""

    door: str
    conversations: int
    tokens: int
    """Token ids that were compared."""


class GreedyProof(Record):
    """The greedy answers of a saved merge beside those of the adapter on the base that it was folded into."""

    prompts: int
    tokens: int
    """Most new tokens a prompt."""
    equal: int
    """Answers that are the same, token by token."""
    stopped: int
    """Answers that the merge ended by itself."""
    largest_gap: float | None
    """Where answers part, the adapter's logit of its token above that of the merge's; none where all are equal."""
    allowed_gap: float
    """Several times the largest logit difference on the probe: a gap below it is a tie that rounding breaks."""


class MergeProof(Record):
    """merged/merge.json: what was folded into what, and how far the result is from what was trained."""

    onto: Literal["full_precision", "dequantized"]
    dtype: str
    candidates: tuple[MergeCandidate, ...]
    probe_rows: int
    probe_tokens: int
    """Answer tokens that the comparisons below are made on."""
    max_logit_difference: float
    """Merged against adapter on the same base, both in fp32 before saving."""
    logit_scale: float
    """Largest absolute logit on the probe, beside which the difference above is to be read."""
    agreement: float
    """Share of answer tokens with the same most probable token: reloaded merge against adapter on the same base."""
    agreement_as_trained: float
    """The same against the model as trained (4-bit base and adapter)."""
    kl_as_trained: float
    """Mean KL divergence, as trained from merged, on answer tokens, in nats."""
    kl_to_base: float
    """Mean KL divergence of the merge from the untuned base: proof that the merge is not a no-op."""
    nll_base: float
    """Mean answer loss of the untuned base, in nats."""
    nll_as_trained: float
    nll_merged: float
    gain_kept: float | None
    """(nll_base - nll_merged) / (nll_base - nll_as_trained); none where training did not lower the loss."""
    doors: tuple[DoorProof, ...] = ()
    """Ways in that were compared; a merge without them is not published."""
    greedy: GreedyProof | None = None
    merged_sha256: str
    """Of the folder's files without this one, as they were proven."""
    files: dict[str, str] = Field(default_factory=dict)
    """The folder's other files → hash; none in proofs from before they were written down."""
    seconds: float
