"""Whether published figures repeat: one tiny run, published, scored again; and what is said where they do not."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from hashlib import sha256
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from staged_folder import restage
from tiny_runs import Outcome, finetune_command, write_classification

from evaluation.files import sha256_of_file, write_model
from evaluation.result_files import list_contenders, load_result
from evaluation.runner import installed_versions
from finetune.bases import hash_published_base
from finetune.chat_templates import load_chat_template
from finetune.publish_manifest import MANIFEST_FILE, Manifest, PublishedBase, PublishedScore, load_manifest
from finetune.published import template_of
from finetune.run_directory import RunDirectory
from finetune.verifying import SMALLEST_DIFFERENCE, Repeated

pytestmark = pytest.mark.slow  # runs are scored again

FIGURES = st.floats(-1e6, 1e6)


def claim(value: float, low: float, high: float) -> PublishedScore:
    return PublishedScore(task="held_out", contender="adapter", metric="m", value=value, low=low, high=high, samples=10)


@given(FIGURES, st.floats(0, 10), st.floats(0, 10))
def test_a_figure_repeats_itself_and_verdicts_get_no_better_further_away(
    value: float, near: float, more: float
) -> None:
    claimed = claim(value, value - 5, value + 5)
    order = ("repeats", "within the interval", "does not repeat")
    assert Repeated(claimed, value).verdict == "repeats"
    verdicts = [order.index(Repeated(claimed, value + distance).verdict) for distance in (0, near, near + more)]
    assert verdicts == sorted(verdicts)
    assert Repeated(claimed, None).verdict == "not scored here"


def test_the_three_verdicts() -> None:
    claimed = claim(0.5, 0.4, 0.6)
    assert Repeated(claimed, 0.5 + SMALLEST_DIFFERENCE / 2).verdict == "repeats"
    assert Repeated(claimed, 0.5 + 2 * SMALLEST_DIFFERENCE).verdict == "within the interval"
    assert Repeated(claimed, 0.61).verdict == "does not repeat"
    assert Repeated(claimed, float("nan")).verdict == "does not repeat"
    large = claim(1e6, 1e6, 1e6)
    assert Repeated(large, 1e6 + 0.5).verdict == "repeats"


def publish(run: RunDirectory, base: Path, rows: Path, folder: Path) -> None:
    """Stage a run as `finetune publish` does: local files by their last part, with their hash."""
    shutil.copytree(run.adapter, folder)
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["base"]["model"] = base.name
    for source in recipe["data"]["train"]:
        source |= {"source": rows.name, "sha256": sha256_of_file(rows)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "README.md").write_text("# tiny\n")
    results = [load_result(run.evaluation, name, "held_out")[0] for name in list_contenders(run.evaluation)]
    scores = tuple(
        PublishedScore(
            task=result.task,
            contender=result.identity.contender,
            metric=metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            samples=estimate.n,
        )
        for result in results
        for metric, estimate in result.metrics.items()
    )
    manifest = Manifest(
        name="tiny",
        parts=("adapter",),
        base=PublishedBase(model=base.name, revision=None, sha256=hash_published_base(base)),
        dtype="float32",
        quantization="nf4-double",
        template_sha256=sha256(template_of(base).encode()).hexdigest(),
        seed=0,
        versions=installed_versions(),
        scores=scores,
        answers=(),
        files=(),
    )
    write_model(folder / MANIFEST_FILE, manifest)
    restage(folder)


class Published:
    """A run that was published, and where its base and rows lie."""

    def __init__(self, place: Path) -> None:
        work = write_classification(place / "work" if (place / "work").mkdir() is None else place)
        outcome = work.run()
        assert outcome.status == 0, outcome.stderr
        self.base, self.rows, self.folder = work.base, work.folder / "rows.csv", place / "published"
        publish(RunDirectory(work.folder / "run"), self.base, self.rows, self.folder)

    def verify(self, folder: Path, *options: str) -> Outcome:
        return finetune_command("verify", str(folder), "--cache", str(self.folder.parent / "cache"), *options)

    def given(self) -> tuple[str, ...]:
        return ("--base", str(self.base), "--data", f"{self.rows.name}={self.rows}")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """One run, published."""
    return Published(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def folder(published: Published, tmp_path: Path) -> Path:
    """A copy of the published folder."""
    return shutil.copytree(published.folder, tmp_path / "published")


def flat(outcome: Outcome) -> str:
    return " ".join(outcome.stderr.split())


@pytest.mark.slow
def test_a_run_with_templates_of_its_own_is_published_and_verified(tmp_path: Path) -> None:
    """Chat template and row template are files of the publisher's; whoever verifies has the untouched base."""
    work = write_classification(tmp_path / "work" if (tmp_path / "work").mkdir() is None else tmp_path)
    rows, chat = work.folder / "mine.yaml", work.folder / "mine.jinja"
    rows.write_bytes(resources.files("finetune.data_templates").joinpath("classification.yaml").read_bytes())
    chat.write_text(load_chat_template("alpaca"), encoding="utf-8")
    recipe = yaml.safe_load(work.recipe.read_text())
    recipe["base"]["chat_template"], recipe["data"]["train"][0]["rows"] = str(chat), str(rows)
    work.recipe.write_text(yaml.safe_dump(recipe))
    assert work.run().status == 0
    folder, run = tmp_path / "published", work.folder / "run"
    stated = ("--base-license", "apache-2.0", "--data-license", "own", "--cache", str(work.cache), "--to")
    target = (f"folder:{tmp_path / 'shelf'}", "--as", "me/tiny", "--out", str(folder))
    outcome = finetune_command("publish", str(run), *stated, *target)
    assert outcome.status == 0, outcome.stderr
    assert "answers: 3 of 3 as published" in outcome.stderr
    assert (folder / "mine.yaml").read_bytes() == rows.read_bytes()
    rows.unlink()
    chat.unlink()
    (work.base / "README.md").write_text("changes nothing", encoding="utf-8")
    given = ("--base", str(work.base), "--data", f"rows.csv={work.folder / 'rows.csv'}")
    outcome = finetune_command("verify", str(folder), "--cache", str(tmp_path / "other"), *given)
    assert outcome.status == 0, outcome.stderr
    assert "does not repeat" not in outcome.stderr
    assert outcome.stderr.count("  repeats") >= 10


@pytest.mark.slow
def test_every_figure_repeats(published: Published, folder: Path) -> None:
    outcome = published.verify(folder, *published.given())
    assert outcome.status == 0, outcome.stderr
    scores = load_manifest(folder).scores
    assert {score.contender for score in scores} == {"base", "adapter", "merged", "majority", "tfidf"}
    merged = sum(score.contender == "merged" for score in scores)
    verdicts = re.findall(r"  (repeats|not scored here|within the interval) *$", outcome.stderr, re.MULTILINE)
    assert Counter(verdicts) == {"repeats": len(scores) - merged, "not scored here": merged}
    assert "the same versions as published" in outcome.stderr


@pytest.mark.slow
def test_a_figure_outside_its_interval_fails_the_proof(published: Published, folder: Path) -> None:
    manifest = load_manifest(folder)
    place = next(
        i for i, score in enumerate(manifest.scores) if (score.contender, score.metric) == ("adapter", "perplexity")
    )
    score = manifest.scores[place]
    for low, status, verdict in ((0.0, 0, "within the interval"), (score.value * 1.05, 5, "does not repeat")):
        claimed = score.model_copy(update={"value": score.value * 1.1, "low": low, "high": score.value * 2})
        scores = (*manifest.scores[:place], claimed, *manifest.scores[place + 1 :])
        (folder / MANIFEST_FILE).write_text(manifest.model_copy(update={"scores": scores}).model_dump_json())
        outcome = published.verify(folder, *published.given())
        assert outcome.status == status, outcome.stderr
        assert verdict in outcome.stderr
    assert "1 of" in flat(outcome)
    assert "first perplexity of adapter on held_out" in flat(outcome)


@pytest.mark.slow
def test_what_is_missing_is_named_with_the_way_to_give_it(published: Published, folder: Path, tmp_path: Path) -> None:
    base = ("--base", str(published.base))
    name, sha256 = published.rows.name, sha256_of_file(published.rows)
    missing = published.verify(folder, *base)
    assert missing.status == 3
    assert f"{name}: its rows were not published (sha256 {sha256})" in flat(missing)
    assert f"--data {name}=FILE" in flat(missing)
    other = tmp_path / "other.csv"
    other.write_text(published.rows.read_text() + "fever,red,1\n")
    assert f"{name} had {sha256}" in flat(published.verify(folder, *base, "--data", f"{name}={other}"))
    assert "no such source" in flat(published.verify(folder, *base, "--data", f"typo={other}"))
    assert "not SOURCE=FILE" in flat(published.verify(folder, *base, "--data", "x"))
    rows = ("--data", f"{name}={published.rows}")
    assert "the base base was not published" in flat(published.verify(folder, *rows))
    (folder / "recipe.yaml").unlink()
    restage(folder)
    absent = published.verify(folder, *published.given())
    assert (absent.status, "no recipe.yaml in it" in flat(absent)) == (3, True)
