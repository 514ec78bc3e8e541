"""The merge proof, figure by figure: what was measured, what it must be, and what it means."""

from __future__ import annotations

from finetune.recipe import Merge
from finetune.records import MergeProof
from finetune.report_contents import MergeCheck
from finetune.report_figures import nats, percent


def merge_checks(proof: MergeProof, limits: Merge) -> tuple[MergeCheck, ...]:
    """List every figure of the proof; limits are the recipe's, other figures are there to be read."""
    return (
        *_checks_against_limits(proof, limits),
        *_divergences(proof),
        *_losses(proof),
        *_candidates(proof),
    )


def _checks_against_limits(proof: MergeProof, limits: Merge) -> tuple[MergeCheck, ...]:
    return (
        MergeCheck(
            name="agreement with the adapter",
            value=percent(proof.agreement, 2),
            limit=f"≥ {percent(limits.minimum_agreement, 2)}",
            holds=proof.agreement >= limits.minimum_agreement,
            meaning="Answer tokens for which the saved merge and the adapter on its base rank the same token first.",
        ),
        MergeCheck(
            name="gain kept",
            value=percent(proof.gain_kept, 2),
            limit=f"≥ {percent(limits.minimum_gain_kept, 2)}",
            holds=proof.gain_kept >= limits.minimum_gain_kept,
            meaning="Share of the fall in loss, base to model as trained, that the saved merge keeps.",
        ),
        MergeCheck(
            name="divergence from the base",
            value=f"{nats(proof.kl_to_base)} nats",
            limit="> 0",
            holds=proof.kl_to_base > 0,
            meaning="Mean KL divergence of the merge from the untuned base: the merge is not a no-op.",
        ),
    )


def _divergences(proof: MergeProof) -> tuple[MergeCheck, ...]:
    return (
        _figure(
            "largest logit difference",
            f"{proof.max_logit_difference:.2e}",
            f"Merged against adapter in fp32 before saving, where logits reach ±{proof.logit_scale:.1f}.",
        ),
        _figure(
            "agreement with the model as trained",
            percent(proof.agreement_as_trained, 2),
            "The same against the model that training saw, quantization included.",
        ),
        _figure(
            "divergence from the model as trained",
            f"{nats(proof.kl_as_trained)} nats",
            "Mean KL divergence, as trained from merged, on answer tokens.",
        ),
    )


def _losses(proof: MergeProof) -> tuple[MergeCheck, ...]:
    return (
        _figure("loss of the base", f"{nats(proof.nll_base)} nats", "Mean loss of answer tokens, untuned."),
        _figure("loss as trained", f"{nats(proof.nll_as_trained)} nats", "The same, at the end of training."),
        _figure("loss of the merge", f"{nats(proof.nll_merged)} nats", "The same, as saved and loaded again."),
    )


def _candidates(proof: MergeProof) -> tuple[MergeCheck, ...]:
    return tuple(
        _figure(
            f"candidate: onto {candidate.onto.replace('_', ' ')}",
            "not measured" if candidate.validation_nll is None else f"{nats(candidate.validation_nll)} nats",
            "Validation loss of this way of folding" + ("; chosen." if candidate.onto == proof.onto else "."),
        )
        for candidate in proof.candidates
    )


def _figure(name: str, value: str, meaning: str) -> MergeCheck:
    return MergeCheck(name=name, value=value, limit="", holds=None, meaning=meaning)
