"""Push and pull as their users meet them: real processes, folders, addresses, and what other people published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from fake_hub import serve
from rich.console import Console
from safetensors.torch import load_file, save_file
from staged_folder import Staged, restage, write_staged
from tiny_runs import Outcome, finetune_command, finetune_process

from evaluation.files import STAGING_PREFIX
from finetune import file_store, publish_check, pushing
from finetune.console import Reporter
from finetune.errors import DataError, MachineError
from finetune.file_store import fetch_from_store, open_store, publish_to_store
from finetune.publish_check import CheckJob, CheckResult, check_published, judged
from finetune.publish_manifest import MANIFEST_FILE, load_manifest

pytestmark = pytest.mark.slow  # a server and processes

QUIET = Reporter(Console(quiet=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """A staged folder with its base, to be copied."""
    return write_staged(tmp_path_factory.mktemp("made"))


@pytest.fixture
def staged(made: Staged, tmp_path: Path) -> Staged:
    """A staged folder of this test's own."""
    return Staged(shutil.copytree(made.folder, tmp_path / "staged"), made.base)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compare without another process, and with an empty cache."""
    monkeypatch.setattr(pushing, "check_in_fresh_process", lambda job: judged(check_published(job), job))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flat(outcome: Outcome) -> str:
    return " ".join(outcome.stderr.split())


@pytest.mark.slow
def test_pushed_pulled_and_asked_by_real_processes(staged: Staged, tmp_path: Path) -> None:
    with serve() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        to = ("--to", "me/tiny", "--base", str(staged.base))
        pushed = finetune_process("push", str(staged.folder), *to, environment=environment)
        assert pushed.status == 0, pushed.stderr
        assert "answers: 2 of 2 as published, by plain transformers and peft" in pushed.stderr
        assert hub.repositories["me/tiny"].private
        out = tmp_path / "pulled"
        pulled = finetune_process("pull", "me/tiny", "--out", str(out), environment=environment)
        assert pulled.status == 0, pulled.stderr
        assert content(out) == content(staged.folder)

        manifest = load_manifest(staged.folder)
        wrong = tuple(answer.model_copy(update={"answer": "Paris."}) for answer in manifest.answers)
        changed = manifest.model_copy(update={"answers": wrong})
        (staged.folder / MANIFEST_FILE).write_text(changed.model_dump_json())
        refused = finetune_process("push", str(staged.folder), *to, environment=environment)
        assert refused.status == 5
        assert "2 of 2 answers differ" in flat(refused)
        assert "hf_test" not in pushed.stderr + pulled.stderr + refused.stderr


@pytest.mark.parametrize(
    ("name", "repo", "accepted"),
    [
        ("me/tiny", "me/tiny", True),
        ("tiny", "me/tiny", True),
        ("me/tiny", "org/tiny", False),
        ("Llama-tiny", "me/tiny", False),
        ("me/Llama-tiny", "me/tiny", False),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_repository_has_the_name_that_was_staged(
    name: str, repo: str, accepted: bool, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(staged.folder).model_copy(update={"name": name})
    (staged.folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    monkeypatch.setattr(pushing, "_send", lambda *_: pytest.fail("sent") if not accepted else (None, True))
    monkeypatch.setattr(pushing, "check_in_fresh_process", lambda _: CheckResult())
    if accepted:
        pushing.push(staged.folder, repo, public=False, reporter=QUIET)
        return
    with pytest.raises(DataError, match=f"staged as '{name}'") as refused:
        pushing.push(staged.folder, repo, public=False, reporter=QUIET)
    assert f"--as {repo}" in str(refused.value)


@pytest.mark.usefixtures("here")
def test_a_folder_is_replaced_whole_and_nothing_else_is(staged: Staged, tmp_path: Path) -> None:
    target = f"folder:{tmp_path / 'shelf'}"
    first = finetune_command("push", str(staged.folder), "--to", target)
    assert first.status == 0, first.stderr
    assert content(tmp_path / "shelf") == content(staged.folder)
    assert "answers were not compared: the base tiny-base is not in the cache" in flat(first)
    assert "already there" in finetune_command("push", str(staged.folder), "--to", target).stderr

    (tmp_path / "shelf" / "LICENSE").write_text("spoiled")
    (staged.folder / "LICENSE").unlink()
    restage(staged.folder)
    assert finetune_command("push", str(staged.folder), "--to", target).status == 0
    assert content(tmp_path / "shelf") == content(staged.folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(STAGING_PREFIX)] == []

    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    refused = finetune_command("push", str(staged.folder), "--to", f"folder:{strange}")
    assert (refused.status, content(strange)) == (3, {"thesis.txt": b"mine"})
    write_other = json.loads((tmp_path / "shelf" / MANIFEST_FILE).read_bytes()) | {"name": "other"}
    (tmp_path / "shelf" / MANIFEST_FILE).write_text(json.dumps(write_other))
    refused = finetune_command("push", str(staged.folder), "--to", target)
    assert "it holds 'other', and this is 'tiny'" in flat(refused)


@pytest.mark.usefixtures("here")
def test_an_address_is_pushed_to_and_pulled_from(staged: Staged, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store/tiny"
    pushed = finetune_command("push", str(staged.folder), "--to", url)
    assert pushed.status == 0, pushed.stderr
    assert content(tmp_path / "store/tiny") == content(staged.folder)
    pulled = finetune_command("pull", url, "--out", "pulled", "--base", str(staged.base))
    assert pulled.status == 0, pulled.stderr
    assert "adapter: LoRA of rank 4, 6 modules, all finite, all fit the base" in flat(pulled)
    assert "chat template: as published" in flat(pulled)
    assert content(tmp_path / "pulled") == content(staged.folder)
    again = finetune_command("pull", url, "--out", "pulled")
    assert "it is there already" in flat(again)
    assert "already there" in finetune_command("push", str(staged.folder), "--to", url).stderr
    (tmp_path / "store/tiny/LICENSE").write_text("spoiled")
    assert "published" in finetune_command("push", str(staged.folder), "--to", url).stderr
    assert content(tmp_path / "store/tiny") == content(staged.folder)


class _Buckets:
    """As object stores are: the first part of a path is a bucket, and this one has none."""

    def exists(self, path: str) -> bool:
        return False


def test_a_bucket_of_a_mistyped_name_is_not_made(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    store = file_store.Store("s3://typo/tiny", _Buckets(), "typo/tiny")
    monkeypatch.setattr(file_store, "open_store", lambda url: store)
    with pytest.raises(DataError, match="there is no bucket 'typo'"):
        publish_to_store(staged.folder, load_manifest(staged.folder), "s3://typo/tiny", QUIET)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [("nowhere://x/y", DataError, "nowhere"), ("s3://bucket/x", MachineError, "s3fs")],
)
def test_addresses_that_nothing_here_can_open(url: str, error: type[Exception], message: str) -> None:
    if url.startswith("s3") and __import__("importlib").util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(error, match=message):
        open_store(url)


STEPS = 40


@pytest.mark.parametrize("place", ["memory", "file"])
def test_cut_at_any_step_an_address_is_the_old_the_new_or_nothing(place: str, staged: Staged, tmp_path: Path) -> None:
    """Let every single operation of a push over an older state fail, in turn, and repeat it afterwards."""
    older, newer = staged.folder, shutil.copytree(staged.folder, tmp_path / "newer")
    (newer / "LICENSE").unlink()
    (newer / "README.md").write_text("# another\n")
    (newer / "more").mkdir()
    (newer / "more" / "notes.md").write_text("new\n")
    restage(newer)
    states = set()
    for step in range(STEPS):
        url = f"memory://{tmp_path.name}/{step}" if place == "memory" else f"file://{tmp_path}/store/{step}"
        assert publish_to_store(older, load_manifest(older), url, QUIET)
        with failing_after(step) as counted, pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_store, "open_store", counted.open)
            try:
                publish_to_store(newer, load_manifest(newer), url, QUIET)
                states.add("done")
            except MachineError:
                states.add(seen(url, tmp_path / f"seen-{step}", older, newer))
        publish_to_store(newer, load_manifest(newer), url, QUIET)
        assert seen(url, tmp_path / f"whole-{step}", older, newer) == "new"
        assert open_store(url).names() == sorted(content(newer)), "nothing is left over"
        if "done" in states:
            break
    assert states == {"old", "nothing", "done"} or states == {"old", "nothing", "new", "done"}


class failing_after:  # noqa: N801
    """A file system whose operations work so many times and then no more."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __enter__(self) -> failing_after:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def open(self, url: str) -> file_store.Store:
        store = open_store(url)
        return file_store.Store(url, _Failing(store.files, self), store.root)


class _Failing:
    def __init__(self, files: object, counter: failing_after) -> None:
        self._files = files
        self._counter = counter

    def __getattr__(self, name: str) -> object:
        work = getattr(self._files, name)
        if name not in {"put_file", "mv", "rm_file", "rm", "makedirs"}:
            return work

        def counted(*arguments: object, **options: object) -> object:
            if self._counter.left == 0 and name == "put_file":
                data = Path(str(arguments[0])).read_bytes()
                self._files.pipe_file(arguments[1], data[: len(data) // 2])  # type: ignore[attr-defined]
            if self._counter.left == 0:
                raise OSError("cut")
            self._counter.left -= 1
            return work(*arguments, **options)

        return counted


def seen(url: str, folder: Path, older: Path, newer: Path) -> str:
    """Say what somebody finds who reads at this moment: never anything but the old, the new or nothing."""
    folder.mkdir()
    job = CheckJob(target=url, commit=None, manifest_sha256="", base=None, cache=folder)
    try:
        fetch_from_store(job.target, folder)
    except DataError:
        return "nothing"
    found = content(folder)
    if found == content(older):
        return "old"
    assert found == content(newer), "a mixture was read as whole"
    return "new"


def test_a_place_of_something_else_is_refused(staged: Staged, tmp_path: Path) -> None:
    manifest = load_manifest(staged.folder)
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/{tmp_path.name}/other/thesis.txt", b"mine")
    with pytest.raises(DataError, match="was not published from here"):
        publish_to_store(staged.folder, manifest, f"memory://{tmp_path.name}/other", QUIET)
    url = f"memory://{tmp_path.name}/named"
    publish_to_store(staged.folder, manifest, url, QUIET)
    with pytest.raises(DataError, match="it holds 'tiny', and this is 'another'"):
        publish_to_store(staged.folder, manifest.model_copy(update={"name": "another"}), url, QUIET)


def test_a_list_that_names_a_place_outside_is_not_followed(staged: Staged, tmp_path: Path) -> None:
    manifest = load_manifest(staged.folder)
    files = (manifest.files[0].model_copy(update={"path": "../../outside.json"}), *manifest.files[1:])
    bad = manifest.model_copy(update={"files": files})
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/bad/{MANIFEST_FILE}", bad.model_dump_json().encode())
    with pytest.raises(DataError, match=r"outside\.json.*not fetched"):
        fetch_from_store(f"memory://{tmp_path.name}/bad", tmp_path / "x")
    (staged.folder / MANIFEST_FILE).write_text(bad.model_dump_json())
    refused = finetune_command("pull", str(staged.folder), "--out", str(tmp_path / "out"))
    assert (refused.status, (tmp_path / "out").exists()) == (3, False)
    assert "'../../outside.json', which is not fetched" in flat(refused)


def pull(staged: Staged, tmp_path: Path, *options: str) -> Outcome:
    outcome = finetune_command(
        "pull", str(staged.folder), "--out", str(tmp_path / "out"), "--cache", str(tmp_path), *options
    )
    assert (tmp_path / "out").exists() == (outcome.status == 0), "a check that fails leaves nothing"
    return outcome


def test_what_was_changed_since_is_refused(staged: Staged, tmp_path: Path) -> None:
    weights = staged.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    refused = pull(staged, tmp_path)
    assert refused.status == 3
    assert "adapter_model.safetensors has other bytes" in flat(refused)


def test_an_adapter_that_is_not_finite_or_does_not_fit_is_refused(staged: Staged, made: Staged, tmp_path: Path) -> None:
    weights = staged.folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, weights)
    restage(staged.folder)
    assert "not finite" in flat(pull(staged, tmp_path))
    wide = {key: torch.ones(value.shape[0], 999) if "lora_A" in key else value for key, value in tensors.items()}
    save_file(wide, weights)
    restage(staged.folder)
    assert "name the base that the adapter was trained on" in flat(pull(staged, tmp_path, "--base", str(made.base)))


def test_another_template_or_another_base_is_noticed(staged: Staged, tmp_path: Path) -> None:
    other = shutil.copytree(staged.base, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    refused = pull(staged, tmp_path, "--base", str(other))
    assert "it is not the published base" in flat(refused)
    with (staged.folder / "chat_template.jinja").open("a") as file:
        file.write(" ")
    restage(staged.folder)
    assert "its chat template is another one" in flat(pull(staged, tmp_path))


def test_without_its_base_it_is_said_what_was_not_checked(staged: Staged, tmp_path: Path) -> None:
    outcome = pull(staged, tmp_path)
    assert outcome.status == 0
    assert "its base tiny-base is not here, so its fit was not checked" in flat(outcome)


def test_what_others_published_is_checked_as_far_as_it_goes(staged: Staged, tmp_path: Path) -> None:
    (staged.folder / MANIFEST_FILE).unlink()
    (staged.folder / "pytorch_model.bin").write_bytes(b"pickle")
    (staged.folder / "modeling.py").write_text("code")
    outcome = pull(staged, tmp_path, "--base", str(staged.base))
    assert outcome.status == 0, outcome.stderr
    assert "all fit the base" in flat(outcome)
    assert "it has no publish.json: nothing says which bytes, base, template or figures were meant" in flat(outcome)
    assert not {"pytorch_model.bin", "modeling.py"} & content(tmp_path / "out").keys()
    shutil.rmtree(tmp_path / "out")
    (staged.folder / "adapter_config.json").unlink()
    (staged.folder / "adapter_model.safetensors").unlink()
    assert "neither an adapter nor a model" in flat(pull(staged, tmp_path))


def test_a_merged_model_alone_lies_at_the_top(made: Staged, tmp_path: Path) -> None:
    merged = Staged(shutil.copytree(made.base, tmp_path / "merged"), made.base)
    (merged.folder / "README.md").write_text("# merged\n")
    shutil.copyfile(made.folder / MANIFEST_FILE, merged.folder / MANIFEST_FILE)
    manifest = load_manifest(merged.folder).model_copy(update={"parts": ("merged",), "answers": ()})
    (merged.folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    restage(merged.folder)
    outcome = pull(merged, tmp_path)
    assert outcome.status == 0, outcome.stderr
    assert "merged model: 20 weights, all finite" in flat(outcome)


def test_the_comparison_asks_again_where_the_base_is_in_the_cache(staged: Staged, tmp_path: Path) -> None:
    shutil.copytree(staged.base, tmp_path / "cache" / "gguf" / "some-key")
    job = job_of(staged, tmp_path / "cache")
    assert check_published(job) == CheckResult(files=8, answers=2)
    other = job.model_copy(update={"manifest_sha256": "0" * 64})
    assert check_published(other).wrong == "publish.json has other bytes", "whole, and not what was sent"
    manifest = load_manifest(staged.folder)
    wrong = manifest.answers[0].model_copy(update={"answer": "something else"})
    changed = manifest.model_copy(update={"answers": (wrong, *manifest.answers[1:])})
    (staged.folder / MANIFEST_FILE).write_text(changed.model_dump_json())
    assert "1 of 2 answers differ" in str(check_published(job_of(staged, tmp_path / "cache")).wrong)


def job_of(staged: Staged, cache: Path) -> CheckJob:
    from evaluation.files import sha256_of_file

    mark = sha256_of_file(staged.folder / MANIFEST_FILE)
    return CheckJob(target=f"folder:{staged.folder}", commit=None, manifest_sha256=mark, base=None, cache=cache)


def test_a_comparison_that_takes_too_long_says_that_it_is_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(publish_check, "_LIMIT_SECONDS", 0.01)
    job = CheckJob(target=f"folder:{tmp_path}", commit=None, manifest_sha256="0" * 64, base=None, cache=tmp_path)
    with pytest.raises(MachineError, match="published, and not compared"):
        publish_check.check_in_fresh_process(job)
