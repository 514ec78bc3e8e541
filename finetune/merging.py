"""The merge stage: fold the adapter, reload what was saved, prove that it is what was trained, or refuse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from evaluation.files import hashes_of_folder, sha256_of_hashes, staged_folder, write_model
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import DTYPES, ModelSpec
from evaluation.rendering import Example, Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.console import Reporter
from finetune.door_conversations import door_conversations
from finetune.doors import as_the_base_speaks, compare_doors, folder_door, training_door
from finetune.errors import ProofFailed
from finetune.example_files import example_at, load_examples
from finetune.merge_records import MERGE_FILE, DoorProof, MergeCandidate, MergeProof
from finetune.merging_answers import answer_greedily, compare_greedy, greedy_prompts
from finetune.merging_fold import Folding, Onto, fold, load_unfolded, save_merged
from finetune.merging_limits import (
    agreement_holds,
    allowed_disagreements,
    differs_from_base,
    disagreements,
    gain_holds,
    greedy_holds,
    logits_hold,
)
from finetune.merging_proof import (
    Measured,
    Probe,
    agreement,
    answer_logits,
    build_probe,
    largest_difference,
    mean_kl,
    mean_nll,
    measure,
)
from finetune.recipe import Merge, Recipe
from finetune.run_directory import RunDirectory

PROBE_ROWS_WITHOUT_VALIDATION = 64
"""Training rows that the proof is made on where there are no validation rows."""
DOOR_CONVERSATIONS = 100
"""Conversations that every merge is tried with at each door; docs/guarantees.md has the figure for a thousand."""


@dataclass(frozen=True)
class _Ground:
    """What a merge is measured on and against."""

    trained: ModelSpec
    merge: Merge
    examples: Sequence[Example]
    probe: Probe
    as_trained: Measured
    prompts: Sequence[tuple[int, ...]]
    """What the adapter and its merge answer greedily, as token ids."""


def merge(recipe: Recipe, run: RunDirectory, trained: ModelSpec, reporter: Reporter) -> None:
    """Fold the adapter of a run and write merged/ with its proof.

    Raises:
        ProofFailed: the merge is not what was trained; nothing is written.
    """
    began = time.perf_counter()
    with reporter.bar("merge: as trained", 1) as advance:
        ground = _measure_ground(recipe, run, trained)
        advance(1)
    ways = _ways(recipe)
    losses = _losses_of_ways(ground, ways, reporter)
    best = min(ways, key=lambda onto: losses[onto]) if losses else ways[0]
    with staged_folder(run.merged) as staging, reporter.bar("merge: prove", 1) as advance:
        proof = _fold_and_measure(ground, best, staging)
        _check(proof, recipe.merge)
        doors = _open_doors(run.adapter, staging)
        held_back = (run.data / "validation.arrow").exists()
        losses[best] = proof.nll_merged
        candidates = tuple(
            MergeCandidate(onto=onto, validation_nll=losses[onto] if held_back else None) for onto in ways
        )
        seconds = time.perf_counter() - began
        record = proof.model_copy(update={"candidates": candidates, "doors": doors, "seconds": seconds})
        write_model(staging / MERGE_FILE, record)
        advance(1)
    kept = "no gain to keep" if proof.gain_kept is None else f"{proof.gain_kept:.1%} of the gain kept"
    reporter.say(f"  folded onto {best}: {proof.agreement:.1%} agreement, {kept}")


def _ways(recipe: Recipe) -> tuple[Onto, ...]:
    if recipe.quantization is None:
        return ("full_precision",)
    return ("full_precision", "dequantized") if recipe.merge.onto == "best" else (recipe.merge.onto,)


def _measure_ground(recipe: Recipe, run: RunDirectory, trained: ModelSpec) -> _Ground:
    validation = run.data / "validation.arrow"
    rows = load_examples(validation if validation.exists() else run.data / "train.arrow")
    count = len(rows) if validation.exists() else min(len(rows), PROBE_ROWS_WITHOUT_VALIDATION)
    examples = [example_at(rows, i) for i in range(count)]
    probe = build_probe(examples)
    model = load_language_model(trained)
    as_trained = measure(model, examples, probe)
    return _Ground(trained, recipe.merge, examples, probe, as_trained, greedy_prompts(model, examples))


def _losses_of_ways(ground: _Ground, ways: Sequence[Onto], reporter: Reporter) -> dict[Onto, float]:
    """Measure what each way would keep, where there are several to choose from."""
    losses: dict[Onto, float] = {}
    if len(ways) > 1:
        with reporter.bar("merge: compare ways to fold", len(ways)) as advance:
            for onto in ways:
                losses[onto] = _loss_as_saved(ground, onto)
                advance(1)
    return losses


def _loss_as_saved(ground: _Ground, onto: Onto) -> float:
    """Fold, round to the type that a merge is saved in, and measure the mean loss of the answers, in nats."""
    folded = fold(load_unfolded(Folding(ground.trained, onto)))
    folded.model.to(dtype=DTYPES[ground.merge.dtype])  # type: ignore[call-arg]  # transformers wraps it untyped
    return mean_nll(folded, ground.examples)


def _fold_and_measure(ground: _Ground, onto: Onto, folder: Path) -> MergeProof:
    unfolded = load_unfolded(Folding(ground.trained, onto))
    adapter_logits = answer_logits(unfolded, ground.probe)
    adapter_answers = answer_greedily(unfolded, ground.prompts)
    untuned = _without_adapter(unfolded, ground)
    folded = fold(unfolded)
    difference = largest_difference(adapter_logits, answer_logits(folded, ground.probe))
    save_merged(folded, folder, ground.merge.dtype)
    del folded, unfolded

    saved = load_language_model(ModelSpec(folder, dtype=ground.merge.dtype, device=ground.trained.device))
    as_saved, as_trained = measure(saved, ground.examples, ground.probe), ground.as_trained
    saved_logits = as_saved.probe_logits
    rounding = largest_difference(saved_logits, adapter_logits)
    files = hashes_of_folder(folder)
    return MergeProof(
        onto=onto,
        dtype=ground.merge.dtype,
        candidates=(),
        probe_rows=len(ground.probe.examples),
        probe_tokens=ground.probe.tokens,
        max_logit_difference=difference,
        logit_scale=float(adapter_logits.abs().max()),
        agreement=agreement(saved_logits, adapter_logits),
        agreement_as_trained=agreement(saved_logits, as_trained.probe_logits),
        kl_as_trained=mean_kl(as_trained.probe_logits, saved_logits),
        kl_to_base=mean_kl(saved_logits, untuned.probe_logits),
        nll_base=untuned.nll,
        nll_as_trained=as_trained.nll,
        nll_merged=as_saved.nll,
        gain_kept=_gain_kept(untuned.nll, as_trained.nll, as_saved.nll),
        greedy=compare_greedy(saved, ground.prompts, adapter_answers, rounding),
        merged_sha256=sha256_of_hashes(files),
        files=files,
        seconds=0.0,
    )


def _open_doors(adapter: Path, merged: Path) -> tuple[DoorProof, ...]:
    renderer = Renderer(load_tokenizer(adapter))
    conversations = as_the_base_speaks(renderer, door_conversations(DOOR_CONVERSATIONS))
    doors = (
        training_door(renderer),
        folder_door("adapter, plain transformers", adapter),
        folder_door("merged, plain transformers", merged),
    )
    return compare_doors(renderer, doors, conversations)


def _without_adapter(unfolded: LanguageModel, ground: _Ground) -> Measured:
    assert isinstance(unfolded.model, PeftModel)
    with unfolded.model.disable_adapter():
        return measure(unfolded, ground.examples, ground.probe)


def _gain_kept(base: float, trained: float, merged: float) -> float | None:
    """Share of the fall in loss that is kept; none where training made no fall."""
    return (base - merged) / (base - trained) if trained < base else None


def _check(proof: MergeProof, limits: Merge) -> None:
    """Refuse a merge that is past a limit."""
    where = "merge"
    if not logits_hold(proof):
        raise ProofFailed(
            f"folded and unfolded logits differ by {proof.max_logit_difference:.2e} in fp32, at a scale of"
            f" {proof.logit_scale:.1f}",
            where=where,
        )
    if not agreement_holds(proof, limits):
        raise ProofFailed(
            f"the saved merge and its adapter disagree on {disagreements(proof)} of {proof.probe_tokens} answer tokens,"
            f" {allowed_disagreements(proof, limits)} are allowed",
            where=where,
            hint="save in a wider type (merge.dtype), or lower merge.minimum_agreement if you accept it",
        )
    if proof.greedy is not None and not greedy_holds(proof.greedy):
        raise ProofFailed(
            f"the saved merge and its adapter answer {proof.greedy.prompts - proof.greedy.equal} of"
            f" {proof.greedy.prompts} prompts otherwise, by logits {proof.greedy.largest_gap:.2g} apart;"
            f" rounding explains {proof.greedy.allowed_gap:.2g}",
            where=where,
        )
    if not differs_from_base(proof):
        raise ProofFailed("the merge equals the untuned base: nothing was folded in", where=where)
    if not gain_holds(proof, limits):
        kept = "none" if proof.gain_kept is None else f"{proof.gain_kept:.1%}"
        raise ProofFailed(
            f"the merge keeps {kept} of the fall in validation loss, the limit is"
            f" {limits.minimum_gain_kept:.1%} (base {proof.nll_base:.4f}, as trained {proof.nll_as_trained:.4f},"
            f" merged {proof.nll_merged:.4f} nats)",
            where=where,
            hint="use merge.onto: dequantized, or lower merge.minimum_gain_kept if you accept it",
        )
