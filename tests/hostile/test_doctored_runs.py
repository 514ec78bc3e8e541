"""Runs and published folders that somebody has changed by hand: refused by name by whoever speaks for them."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from tiny_runs import Outcome, Workplace, finetune_command, write_classification

from finetune.publish_manifest import MANIFEST_FILE
from finetune.run_directory import OUTPUTS, STAGES

pytestmark = pytest.mark.slow  # a whole run is made first

STATED = ("--base-license", "apache-2.0", "--data-license", "cc-by-4.0", "--as", "me/tiny")
LEFT_ALONE = ("cache/", ".holder")


def _publish(run: Path, place: Workplace, out: Path) -> Outcome:
    where = ("--stage-only", "--out", str(out), "--cache", str(place.cache))
    return finetune_command("publish", str(run), *where, *STATED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = write_classification(tmp_path_factory.mktemp("doctored"))
    ran = workplace.run()
    assert ran.status == 0, ran.stderr
    return workplace


@pytest.fixture(scope="module")
def published(place: Workplace) -> Path:
    outcome = _publish(place.folder / "run", place, place.folder / "published")
    assert outcome.status == 0, outcome.stderr
    return place.folder / "published"


def by_hand(file: Path) -> None:
    """Change one figure of a text, or one bit of anything else: what is left is as well-formed as before."""
    content = file.read_bytes()
    digits = [match.start() for match in re.finditer(rb"[1-8]", content)]
    if digits and file.suffix in {".json", ".jsonl", ".yaml", ".md", ".html"}:
        place = digits[len(digits) // 2]
        file.write_bytes(content[:place] + bytes([content[place] + 1]) + content[place + 1 :])
    elif not content:
        file.write_bytes(b"1")
    else:
        place = random.Random(file.name).randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith(LEFT_ALONE))


def _doctored_runs(run: Path, copies: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield what was changed, what has to be named, and the changed copy of a run."""
    for name in _files(run):
        if name == "stages/report.json":
            continue  # its own cases below
        copied = Path(shutil.copytree(run, copies / "run"))
        by_hand(copied / name)
        outputs = [output for stage in STAGES for output in OUTPUTS[stage]]
        named = next((one for one in outputs if name == one or name.startswith(f"{one}/")), name)
        yield name, Path(name).name if named == "merged" else named, copied
        shutil.rmtree(copied)
    for key, changed in (("outputs", "report.md"), ("records", "recipe.lock.json"), ("inputs", "scores")):
        copied = Path(shutil.copytree(run, copies / "run"))
        marker = json.loads((copied / "stages" / "report.json").read_bytes())
        marker[key][changed] = "0" * 64
        (copied / "stages" / "report.json").write_text(json.dumps(marker), encoding="utf-8")
        yield f"stages/report.json, {key}", changed, copied
        shutil.rmtree(copied)


def test_a_run_that_was_changed_by_hand_is_not_published(place: Workplace, figures: Figures, tmp_path: Path) -> None:
    wrong, cases = [], 0
    for what, named, copied in _doctored_runs(place.folder / "run", tmp_path):
        outcome, out = _publish(copied, place, tmp_path / "out"), tmp_path / "out"
        said = "".join(outcome.stderr.split())
        if outcome.status not in (3, 5) or named not in said or out.exists():
            wrong.append(f"{what}: {outcome.status}, {outcome.stderr[-200:]}")
        shutil.rmtree(out, ignore_errors=True)
        cases += 1
    note = "every file of a run: recipe, lock, machine, markers, data, training, adapter, merge, scores, report"
    claim = "a run that was changed by hand is not published, and what was changed is named"
    figures.report("Doctored runs", claim, cases, "changes", len(wrong), note)
    assert cases > 30
    assert not wrong, "\n".join(wrong)


def test_weights_with_a_marker_to_match_are_not_published(place: Workplace, tmp_path: Path) -> None:
    """Whoever changes an adapter and the marker that vouches for it has the markers after it against them."""
    from finetune.run_directory import RunDirectory, hash_of

    run = RunDirectory(Path(shutil.copytree(place.folder / "run", tmp_path / "run")))
    by_hand(run.adapter / "adapter_model.safetensors")
    marker = run.marker("train")
    assert marker is not None
    changed = marker.model_copy(update={"outputs": marker.outputs | {"adapter": hash_of(run.adapter)}})
    run.marker_file("train").write_text(changed.model_dump_json(), encoding="utf-8")
    outcome = _publish(run.folder, place, tmp_path / "out")
    assert outcome.status == 3
    assert "stages/train.json" in outcome.stderr


def test_a_run_that_was_changed_by_hand_is_reported_anew_by_a_run(place: Workplace, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(place.folder / "run", tmp_path / "run"))
    lock = (copied / "recipe.lock.json").read_text(encoding="utf-8")
    by_hand(copied / "recipe.lock.json")
    outcome = place.run(out=copied)
    assert outcome.status == 0, outcome.stderr
    assert "report: recipe.lock.json is missing or was changed" in outcome.stderr
    assert (copied / "recipe.lock.json").read_text(encoding="utf-8") == lock


# ------------------------------------------------------------------ what was published

Claim = Callable[[dict[str, Any]], Any]


def _setting(*path: str | int, value: Any) -> Claim:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


CLAIMS: dict[str, tuple[Claim, str]] = {
    "a figure": (_setting("scores", 0, "value", value=0.999), "results.json"),
    "its lower end": (_setting("scores", 0, "low", value=0.001), "results.json"),
    "its upper end": (_setting("scores", 0, "high", value=1.5), "results.json"),
    "its samples": (_setting("scores", 0, "samples", value=4000), "results.json"),
    "a figure left out": (lambda document: document["scores"].pop(), "results.json"),
    "a contender": (_setting("scores", 0, "contender", value="merged_int8"), "results.json"),
    "the seed": (_setting("seed", value=7), "the seed"),
    "a version": (lambda document: document["versions"].update(torch="1.0"), "a version"),
    "the name of the base": (_setting("base", "model", value="meta-llama/Llama-3.2-1B"), "the base"),
    "the commit of the base": (_setting("base", "revision", value="a" * 40), "the base"),
    "dtype": (_setting("dtype", value="bfloat16"), "dtype"),
    "quantization": (_setting("quantization", value=None), "quantization"),
    "a hash": (lambda document: document["files"][0].update(sha256="0" * 64), "has other bytes"),
    "a size": (lambda document: document["files"][0].update(bytes=1), "has other bytes"),
    "a file left out": (lambda document: document["files"].pop(0), "is not listed"),
    "a file too many": (
        lambda document: document["files"].append({"path": "x.md", "bytes": 1, "sha256": "0" * 64}),
        "x.md is missing",
    ),
    "a key of its own": (_setting("trusted", value=True), "trusted"),
    "the version of the format": (_setting("version", value=2), "version"),
}
"""Changes to publish.json that push and verify refuse, and what they name."""

ASKED: dict[str, tuple[Claim, str]] = {
    "the hash of the base": (_setting("base", "sha256", value="0" * 64), "published base"),
    "an answer": (_setting("answers", 0, "answer", value="Paris, of course."), "answer"),
}
"""Those that one command finds, by asking: verify for the base, push for the answers."""


def _push(folder: Path, place: Workplace, out: Path) -> Outcome:
    named = ("--base", str(place.base), "--cache", str(place.cache))
    return finetune_command("push", str(folder), "--to", f"folder:{out}", *named)


def _verify(folder: Path, place: Workplace, out: Path) -> Outcome:
    named = ("--base", str(place.base), "--data", f"rows.csv={place.folder / 'rows.csv'}", "--cache", str(out))
    return finetune_command("verify", str(folder), *named)


COMMANDS = {"push": _push, "verify": _verify}


def _with_claim(published: Path, change: Claim, folder: Path) -> Path:
    shutil.copytree(published, folder)
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    change(document)
    (folder / MANIFEST_FILE).write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_a_published_folder_that_was_changed_by_hand_is_refused(
    place: Workplace, published: Path, figures: Figures, tmp_path: Path
) -> None:
    wrong, cases = [], 0

    def tried(name: str, what: str, folder: Path, said: str) -> None:
        out = tmp_path / "out"
        outcome = COMMANDS[name](folder, place, out)
        flat = " ".join(outcome.stderr.split())
        if outcome.status not in (3, 5) or said not in flat or (name == "push" and out.exists()):
            wrong.append(f"{name}, {what}: {outcome.status}, {outcome.stderr[-200:]}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(folder)

    for command in COMMANDS:
        for file in _files(published):
            if file != MANIFEST_FILE:
                copied = Path(shutil.copytree(published, tmp_path / "copy"))
                by_hand(copied / file)
                tried(command, file, copied, f"{file} has other bytes")
                cases += 1
        for what, (change, said) in CLAIMS.items():
            if (command, what) == ("verify", "a file left out"):
                continue  # what is not listed is not fetched, and so not read
            tried(command, what, _with_claim(published, change, tmp_path / "copy"), said)
            cases += 1
    change, said = ASKED["the hash of the base"]
    tried("verify", "the hash of the base", _with_claim(published, change, tmp_path / "copy"), said)
    cases += 1
    claim = "a published folder that was changed by hand is refused, and what was changed is named"
    note = f"every file, and {len(CLAIMS)} claims of publish.json; push, verify"
    figures.report("Doctored runs", claim, cases, "changes × commands", len(wrong), note)
    assert not wrong, "\n".join(wrong)


def test_another_answer_is_found_by_asking(place: Workplace, published: Path, tmp_path: Path) -> None:
    change, said = ASKED["an answer"]
    outcome = _push(_with_claim(published, change, tmp_path / "copy"), place, tmp_path / "out")
    assert outcome.status == 5
    assert said in outcome.stderr


def test_what_was_not_changed_is_verified(place: Workplace, published: Path, tmp_path: Path) -> None:
    """Else every refusal would be worth nothing."""
    outcome = _verify(published, place, tmp_path / "cache")
    assert outcome.status == 0, outcome.stderr
    outcome = _push(published, place, tmp_path / "out")
    assert outcome.status == 0, outcome.stderr
