"""The merge proof, figure by figure: what was measured, what it must be, and what it means."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.merge_records import MergeProof
from finetune.merging_limits import (
    GAP_FACTOR,
    LARGEST_RELATIVE_LOGIT_DIFFERENCE,
    LEAST_KL_TO_BASE,
    agreement_holds,
    allowed_disagreements,
    differs_from_base,
    gain_holds,
    greedy_holds,
    logits_hold,
)
from finetune.recipe import Merge
from finetune.report_contents import MergeCheck
from finetune.report_figures import nats, percent


def merge_checks(proof: MergeProof, limits: Merge) -> tuple[MergeCheck, ...]:
    """List every figure of the proof; those with a limit stopped the run where it did not hold."""
    return (
        *_checks_against_limits(proof, limits),
        *_doors(proof),
        *_divergences(proof),
        *_losses(proof),
        *_candidates(proof),
    )


def _checks_against_limits(proof: MergeProof, limits: Merge) -> tuple[MergeCheck, ...]:
    return (
        MergeCheck(
            name="agreement with the adapter",
            value=percent(proof.agreement, 2),
            limit=(
                f"≥ {percent(limits.minimum_agreement, 2)},"
                f" {allowed_disagreements(proof, limits)} of {proof.probe_tokens} tokens may differ"
            ),
            holds=agreement_holds(proof, limits),
            meaning="Answer tokens for which the saved merge and the adapter on its base rank the same token first.",
        ),
        MergeCheck(
            name="largest logit difference",
            value=f"{proof.max_logit_difference:.2e}",
            limit=f"≤ {LARGEST_RELATIVE_LOGIT_DIFFERENCE:.0e} × {max(1.0, proof.logit_scale):.1f}, the largest logit",
            holds=logits_hold(proof),
            meaning="Folded against unfolded adapter on the same base, both in fp32, before saving.",
        ),
        MergeCheck(
            name="gain kept",
            value="no gain to keep" if proof.gain_kept is None else percent(proof.gain_kept, 2),
            limit=f"≥ {percent(limits.minimum_gain_kept, 2)}",
            holds=gain_holds(proof, limits),
            meaning="Share of the fall in loss, base to model as trained, that the saved merge keeps.",
        ),
        MergeCheck(
            name="divergence from the base",
            value=f"{nats(proof.kl_to_base)} nats",
            limit=f"≥ {LEAST_KL_TO_BASE:.0e} nats",
            holds=differs_from_base(proof),
            meaning="Mean KL divergence of the merge from the untuned base: the merge is not a no-op.",
        ),
    )


def _doors(proof: MergeProof) -> Iterator[MergeCheck]:
    """Yield the comparison of prompts and of greedy answers, where this proof has them."""
    if proof.doors:
        conversations = min(door.conversations for door in proof.doors)
        yield MergeCheck(
            name="same tokens at every door",
            value=f"{conversations} of {conversations}",
            limit="all",
            holds=True,
            meaning=f"Conversations that become the tokens that are scored: {', '.join(d.door for d in proof.doors)}.",
        )
    if greedy := proof.greedy:
        apart = "" if greedy.largest_gap is None else f", {greedy.largest_gap:.1e} logits apart where they part"
        yield MergeCheck(
            name="same greedy answers",
            value=f"{greedy.equal} of {greedy.prompts}{apart}",
            limit=f"≤ {greedy.allowed_gap:.1e} logits apart, {GAP_FACTOR:g} times the largest difference by rounding",
            holds=greedy_holds(greedy),
            meaning=f"{greedy.tokens} tokens by merge and adapter; {greedy.stopped} ended by themselves.",
        )


def _divergences(proof: MergeProof) -> tuple[MergeCheck, ...]:
    return (
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
