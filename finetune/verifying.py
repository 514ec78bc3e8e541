"""`finetune verify`: prepares the data of a published recipe, scores what was published, compares each figure."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from rich.markup import escape
from rich.table import Table

from evaluation.model import ModelSpec, Quantization, stored_dtype
from evaluation.result_files import load_result
from evaluation.runner import installed_versions
from finetune.adapter import adapter_hash
from finetune.bases import hash_model_folder, hash_published_base, resolve_base
from finetune.console import Reporter
from finetune.contenders import QUANTIZED_MERGES
from finetune.errors import DataError, ProofFailed
from finetune.pipeline import run_recipe
from finetune.publish_claims import check_claims
from finetune.publish_manifest import Manifest, PublishedScore, check_files, load_manifest, merged_folder
from finetune.published import fetch_published, find_base
from finetune.pulling import Pull
from finetune.push_targets import parse_source
from finetune.recipe import Base, Recipe
from finetune.recipe import Contender as RecipeContender
from finetune.run_directory import RunDirectory
from finetune.scoring import CLASSICAL, Contender, score_contenders
from finetune.verifying_recipe import RECIPE_FILE, load_published_recipe

SMALLEST_DIFFERENCE = 1e-6
"""Relative to figures above 1: what the same program may differ by between two runs."""

Verdict = Literal["repeats", "within the interval", "does not repeat", "not scored here"]


@dataclass(frozen=True)
class Repeated:
    """A published figure beside the one that was found."""

    claimed: PublishedScore
    found: float | None
    """None where nothing here scores it."""

    @property
    def verdict(self) -> Verdict:
        """Say whether the figure repeats: equal up to rounding, or at least inside its 95 % interval."""
        if self.found is None:
            return "not scored here"
        if abs(self.found - self.claimed.value) <= SMALLEST_DIFFERENCE * max(1.0, abs(self.claimed.value)):
            return "repeats"
        inside = self.claimed.low <= self.found <= self.claimed.high
        return "within the interval" if inside else "does not repeat"


def verify(wanted: Pull, data: Sequence[str], reporter: Reporter) -> tuple[Repeated, ...]:
    """Score what was published again and print claimed, found and verdict of every figure.

    `data` are pairs `SOURCE=FILE` for sources that were not published.

    Raises:
        TaskError: the source is none that can be read.
        DataError: something that scoring needs is missing or another than was published.
        MachineError: the source cannot be reached.
        ProofFailed: a figure lies outside its interval, or none could be compared.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-verify-") as place:
        folder = Path(place) / "published"
        folder.mkdir()
        with reporter.bar(f"fetch {wanted.source}", None):
            fetch_published(parse_source(wanted.source), wanted.revision, folder)
        manifest = load_manifest(folder)
        check_files(folder, manifest)
        check_claims(folder, manifest)
        reporter.say(f"{wanted.source}: {len(manifest.scores)} figures")
        if not manifest.scores:
            raise DataError("it claims no figures", where=wanted.source)
        base = find_base(manifest.base, wanted.base, wanted.cache)
        loaded = load_published_recipe(folder, manifest, base, data)
        run = run_recipe(loaded, Path(place) / "run", wanted.cache, reporter, until="prepare")
        models = _contenders(folder, manifest, _prepared_base(loaded.recipe.base, manifest, wanted.cache, reporter))
        score_contenders(_claimed_only(loaded.recipe, manifest), run, models, reporter)
        repeated = tuple(Repeated(score, _found(run, score)) for score in manifest.scores)
    _show(repeated, manifest, reporter)
    counts = Counter(line.verdict for line in repeated)
    reporter.say(f"of {len(repeated)} figures: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in counts))
    return _judged(repeated, wanted.source)


def _prepared_base(base: Base, manifest: Manifest, cache: Path, reporter: Reporter) -> Path:
    """Return the base that the data were prepared for, with the published chat template.

    Raises:
        DataError: it is not the published one.
    """
    found = resolve_base(base, cache, reporter.say).folder
    if hash_published_base(found) != manifest.base.sha256:
        what = f"what its recipe names as base is not {manifest.base.model} as it was published"
        raise DataError(what, where=RECIPE_FILE, hint="--base names the folder of the base")
    return found


def _contenders(folder: Path, manifest: Manifest, base: Path) -> list[Contender]:
    """List the models as the evaluation stage does: base, adapter on its base, merged model."""
    sha256 = hash_model_folder(base)
    quantization = None
    if manifest.quantization is not None:
        quantization = Quantization(double_quant=manifest.quantization.endswith("-double"))
    models = [Contender("base", ModelSpec(base, dtype=manifest.dtype), sha256)]
    if "adapter" in manifest.parts:
        spec = ModelSpec(base, adapter=folder, quantization=quantization, dtype=manifest.dtype)
        models.append(Contender("adapter", spec, sha256, adapter_hash(folder)))
    if "merged" in manifest.parts:
        merged = folder / merged_folder(manifest)
        dtype = stored_dtype(merged)
        forms = {"merged": None, **QUANTIZED_MERGES}
        merged_sha256 = hash_model_folder(merged)
        models += [Contender(name, ModelSpec(merged, None, form, dtype), merged_sha256) for name, form in forms.items()]
    claimed = {score.contender for score in manifest.scores}
    return [model for model in models if model.name in claimed]


def _claimed_only(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Return the recipe with just the contenders that are claimed."""
    claimed = {score.contender for score in manifest.scores}
    if claimed & set(CLASSICAL):
        claimed.add("baseline")
    ordered = tuple(name for name in get_args(RecipeContender) if name in claimed)
    evaluation = recipe.evaluation.model_copy(update={"contenders": ordered})
    return recipe.model_copy(update={"evaluation": evaluation})


def _found(run: RunDirectory, score: PublishedScore) -> float | None:
    if not (run.evaluation / score.contender / f"{score.task}.json").is_file():
        return None
    result, _ = load_result(run.evaluation, score.contender, score.task)
    estimate = result.metrics.get(score.metric)
    if estimate is not None and estimate.n != score.samples:
        what = f"{score.task} has {estimate.n} samples here, and {score.samples} were published"
        raise ProofFailed(what, hint="the data or this program prepare other rows than were scored")
    return None if estimate is None else estimate.value


def _show(repeated: Sequence[Repeated], manifest: Manifest, reporter: Reporter) -> None:
    table = Table("", "claimed", "95 %", "found", "verdict", box=None, padding=(0, 2, 0, 0))
    for (task, contender), lines in groupby(repeated, lambda line: (line.claimed.task, line.claimed.contender)):
        table.add_row(escape(f"{task}: {contender}"), style="bold")
        for line in lines:
            claim = line.claimed
            interval = f"{claim.low:.4g} to {claim.high:.4g}"
            found = "" if line.found is None else f"{line.found:.4g}"
            table.add_row(f"  {escape(claim.metric)}", f"{claim.value:.4g}", interval, found, line.verdict)
    reporter.show(table)
    here = installed_versions()
    others = [f"{name} {was} → {here[name]}" for name, was in manifest.versions.items() if here.get(name, was) != was]
    reporter.say(f"other versions than published: {', '.join(others)}" if others else "the same versions as published")


def _judged(repeated: tuple[Repeated, ...], source: str) -> tuple[Repeated, ...]:
    wrong = [line for line in repeated if line.verdict == "does not repeat"]
    if wrong:
        first = wrong[0]
        what = f"{len(wrong)} of {len(repeated)} figures do not repeat, first {first.claimed.metric} of"
        told = f"{first.claimed.contender} on {first.claimed.task}: {first.claimed.value:.6g} became {first.found:.6g}"
        raise ProofFailed(f"{what} {told}", where=source)
    if all(line.found is None for line in repeated):
        raise ProofFailed("none of its figures can be scored here", where=source)
    return repeated
