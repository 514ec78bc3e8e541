"""publish.json claims what recipe.yaml and results.json beside it say, and each claim that is another is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_inputs import inputs
from test_publish_records import lock

from finetune.errors import DataError
from finetune.publish_claims import check_claims
from finetune.publish_manifest import Manifest, PublishedBase
from finetune.publish_records import RECIPE_FILE, RESULTS_FILE, published_report, published_scores, write_records
from finetune.recipe_file import load_recipe
from finetune.report import build_report
from finetune.report_contents import Report


def shown_report() -> Report:
    recipe = load_recipe("icd10-quickstart").recipe
    return published_report(build_report(replace(inputs(), recipe=recipe)), lock())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path, shown_report(), lock())
    return tmp_path


@pytest.fixture
def manifest() -> Manifest:
    shown = shown_report()
    recipe = shown.recipe
    assert recipe.quantization is not None
    return Manifest(
        name="tiny",
        parts=("adapter",),
        base=PublishedBase(model=recipe.base.model, revision=recipe.base.revision, sha256=""),
        dtype=recipe.base.dtype,
        quantization="nf4-double" if recipe.quantization.double_quant else "nf4",
        template_sha256="",
        seed=shown.seed,
        versions=lock().versions,
        scores=published_scores(shown),
        answers=(),
        files=(),
    )


def refused(folder: Path, manifest: Manifest, said: str, **claims: object) -> None:
    with pytest.raises(DataError) as error:
        check_claims(folder, manifest.model_copy(update=claims))
    assert error.value.what == f"{said} says"
    assert error.value.where == str(folder)


def test_what_is_claimed_is_what_the_records_say(folder: Path, manifest: Manifest) -> None:
    assert manifest.scores
    check_claims(folder, manifest)


def test_every_claim_that_is_another_is_named(folder: Path, manifest: Manifest) -> None:
    first = manifest.scores[0]
    named = f"{first.metric} of {first.contender} on {first.task} in publish.json is not what {RESULTS_FILE}"
    better = first.model_copy(update={"value": first.value + 0.01})
    refused(folder, manifest, named, scores=(better, *manifest.scores[1:]))
    refused(folder, manifest, named, scores=manifest.scores[1:])
    more = first.model_copy(update={"metric": "a new one"})
    named = f"a new one of {first.contender} on {first.task} in publish.json is not what {RESULTS_FILE}"
    refused(folder, manifest, named, scores=(*manifest.scores, more))
    refused(folder, manifest, f"a version in publish.json is not what {RESULTS_FILE}", versions={"torch": "2.12.0"})
    refused(folder, manifest, f"the seed in publish.json is not what {RESULTS_FILE}", seed=manifest.seed + 1)
    other = manifest.base.model_copy(update={"model": "other"})
    refused(folder, manifest, f"the base in publish.json is not what {RECIPE_FILE}", base=other)
    other = manifest.base.model_copy(update={"revision": "a" * 40})
    refused(folder, manifest, f"the base in publish.json is not what {RECIPE_FILE}", base=other)
    refused(folder, manifest, f"dtype in publish.json is not what {RECIPE_FILE}", dtype="float64")
    refused(folder, manifest, f"quantization in publish.json is not what {RECIPE_FILE}", quantization=None)


def test_the_seed_is_compared_with_either_record(folder: Path, manifest: Manifest) -> None:
    (folder / RESULTS_FILE).unlink()
    check_claims(folder, manifest)
    refused(folder, manifest, f"the seed in publish.json is not what {RECIPE_FILE}", seed=manifest.seed + 1)
    text = (folder / RECIPE_FILE).read_text()
    assert "\nquantization:" in text
    without = text[: text.index("\nquantization:")] + "\n" + "adapter:" + text.partition("\nadapter:")[2]
    (folder / RECIPE_FILE).write_text(without)
    refused(folder, manifest, f"quantization in publish.json is not what {RECIPE_FILE}")
    check_claims(folder, manifest.model_copy(update={"quantization": None}))


def test_a_folder_without_records_is_left_alone(tmp_path: Path, manifest: Manifest) -> None:
    check_claims(tmp_path, manifest)


def test_damaged_results_are_named(folder: Path, manifest: Manifest) -> None:
    (folder / RESULTS_FILE).write_text("{}")
    with pytest.raises(DataError, match="another version of this program, or is damaged"):
        check_claims(folder, manifest)
