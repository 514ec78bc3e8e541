"""The merge stage: fold the adapter, reload what was saved, prove that it is what was trained, or refuse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from evaluation.files import hashes_of_folder, sha256_of_hashes, staged_folder, write_model
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
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
    Probe,
    agreement,
    answer_logits,
    build_probe,
    largest_difference,
    mean_kl,
    mean_nll,
)
from finetune.recipe import Merge, Recipe
from finetune.run_directory import RunDirectory

PROBE_ROWS_WITHOUT_VALIDATION = 64
"""Training rows that the proof is made on where there are no validation rows."""
DOOR_CONVERSATIONS = 100
"""Conversations that every merge is tried with at each door; docs/guarantees.md has the figure for a thousand."""


@dataclass(frozen=True)
class _Ground:
    """What every candidate is measured on and against."""

    trained: ModelSpec
    merge: Merge
    examples: Sequence[Example]
    probe: Probe
    trained_logits: Tensor
    nll_trained: float
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
    with staged_folder(run.merged) as staging:
        candidates = []
        ways = _ways(recipe)
        with reporter.bar("merge: fold and compare", len(ways)) as advance:
            for onto in ways:
                candidates.append(_fold_and_measure(ground, onto, staging / onto))
                advance(1)
        best = min(candidates, key=lambda proof: proof.nll_merged)
        _check(best, recipe.merge)
        _keep(staging, best)
        doors = _open_doors(run.adapter, staging)
        seconds = time.perf_counter() - began
        held_back = (run.data / "validation.arrow").exists()
        measured = tuple(
            MergeCandidate(onto=c.onto, validation_nll=c.nll_merged if held_back else None) for c in candidates
        )
        write_model(
            staging / MERGE_FILE, best.model_copy(update={"candidates": measured, "doors": doors, "seconds": seconds})
        )
    kept = "no gain to keep" if best.gain_kept is None else f"{best.gain_kept:.1%} of the gain kept"
    reporter.say(f"  folded onto {best.onto}: {best.agreement:.1%} agreement, {kept}")


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
    logits, nll = answer_logits(model, probe), mean_nll(model, examples)
    return _Ground(trained, recipe.merge, examples, probe, logits, nll, greedy_prompts(model, examples))


def _fold_and_measure(ground: _Ground, onto: Onto, folder: Path) -> MergeProof:
    unfolded = load_unfolded(Folding(ground.trained, onto))
    adapter_logits = answer_logits(unfolded, ground.probe)
    adapter_answers = answer_greedily(unfolded, ground.prompts)
    nll_base, base_logits = _without_adapter(unfolded, ground)
    folded = fold(unfolded)
    difference = largest_difference(adapter_logits, answer_logits(folded, ground.probe))
    save_merged(folded, folder, ground.merge.dtype)
    del folded, unfolded

    saved = load_language_model(ModelSpec(folder, dtype=ground.merge.dtype, device=ground.trained.device))
    saved_logits = answer_logits(saved, ground.probe)
    nll_merged = mean_nll(saved, ground.examples)
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
        agreement_as_trained=agreement(saved_logits, ground.trained_logits),
        kl_as_trained=mean_kl(ground.trained_logits, saved_logits),
        kl_to_base=mean_kl(saved_logits, base_logits),
        nll_base=nll_base,
        nll_as_trained=ground.nll_trained,
        nll_merged=nll_merged,
        gain_kept=_gain_kept(nll_base, ground.nll_trained, nll_merged),
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


def _without_adapter(unfolded: LanguageModel, ground: _Ground) -> tuple[float, Tensor]:
    assert isinstance(unfolded.model, PeftModel)
    with unfolded.model.disable_adapter():
        return mean_nll(unfolded, ground.examples), answer_logits(unfolded, ground.probe)


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


def _keep(staging: Path, best: MergeProof) -> None:
    """Move the kept candidate's files up, and drop the other's."""
    for path in (staging / best.onto).iterdir():
        path.rename(staging / path.name)
    for onto in ("full_precision", "dequantized"):
        folder = staging / onto
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
