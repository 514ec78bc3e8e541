"""Twenty doctored adapters at every command that loads one: each is refused by name, and nothing is written."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import Figures
from safetensors.torch import load_file, save_file
from staged_folder import Staged, restage, write_staged
from tiny_model import write_tiny_base
from tiny_runs import Outcome, evaluation_command, finetune_command

from evaluation.files import write_model
from finetune.base_hashes import hash_base_files, hash_of_files
from finetune.run_directory import RunDirectory
from finetune.run_lock import Lock, LockedInputs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
Settings = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Change = Callable[[Settings, Tensors, Path], None]

PAYLOAD = "from pathlib import Path\nPath({canary!r}).touch()\n"
SLOWEST_SECONDS = 20.0
"""A command on the tiny model on a busy machine; a hostile pattern takes longer than anybody waits."""


def settings(**changed: Any) -> Change:
    return lambda config, _, __: config.update(changed)


def filled(name: str, value: float) -> Change:
    return lambda _, tensors, __: tensors.update({name: torch.full_like(tensors[name], value)})


def _without_layer(_: Settings, tensors: Tensors, __: Path) -> None:
    for name in [name for name in tensors if "layers.1." in name]:
        del tensors[name]


def _another_layer(_: Settings, tensors: Tensors, __: Path) -> None:
    for end in "AB":
        tensors[f"{Q.replace('.0.', '.7.')}.lora_{end}.weight"] = tensors[f"{Q}.lora_{end}.weight"].clone()


def _runs_code(config: Settings, _: Tensors, folder: Path) -> None:
    (folder / "evil_core.py").write_text(PAYLOAD.format(canary=str(folder.parent / "executed")), encoding="utf-8")
    config.update(megatron_core="evil_core", megatron_config={"params_dtype": "float32"})


def _auto_map(config: Settings, _: Tensors, folder: Path) -> None:
    text = PAYLOAD.format(canary=str(folder.parent / "executed"))
    (folder / "evil_tokenizer.py").write_text(text, encoding="utf-8")
    stated = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    stated["auto_map"] = {"AutoTokenizer": ["evil_tokenizer.Evil", "evil_tokenizer.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
    config["auto_mapping"] = {"parent_library": "evil_tokenizer", "base_model_class": "Evil"}


def _raw(mangled: Callable[[bytes], bytes]) -> Change:
    """Have the bytes of the weights changed, once they are written."""

    def change(_: Settings, tensors: Tensors, folder: Path) -> None:
        save_file(tensors, folder / WEIGHTS)
        (folder / WEIGHTS).write_bytes(mangled((folder / WEIGHTS).read_bytes()))
        tensors["as it is"] = torch.ones(1)

    return change


class _Payload:
    """What unpickling of it runs."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mknod, (str(self.canary),))


def _pickled_only(_: Settings, tensors: Tensors, folder: Path) -> None:
    torch.save({"x": _Payload(folder.parent / "executed")}, folder / "adapter_model.bin")
    tensors.clear()


INTRINSIC: dict[str, tuple[Change, str]] = {
    "NaN in a factor": (filled(f"{Q}.lora_A.weight", float("nan")), "not finite"),
    "infinity in a factor": (filled(f"{Q}.lora_B.weight", float("-inf")), "not finite"),
    "a factor of zeros": (filled(f"{Q}.lora_B.weight", 0.0), "zero throughout"),
    "an unexpected key": (lambda _, t, __: t.update({"evil.weight": torch.ones(2, 2)}), "evil"),
    "a factor is missing": (lambda _, t, __: t.pop(f"{Q}.lora_B.weight"), "q_proj"),
    "no tensors": (lambda _, t, __: t.clear(), "no tensors"),
    "whole numbers for weights": (
        lambda _, t, __: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.int64)}),
        "int64",
    ),
    "another rank in the settings": (settings(r=8), "(?s)rank|fit"),
    "a rank without end": (settings(r=10**9), "rank"),
    "a scale that is no number": (settings(lora_alpha=float("nan")), "lora_alpha"),
    "another method": (settings(peft_type="MULTITASK_PROMPT_TUNING"), "MULTITASK_PROMPT_TUNING"),
    "a module to import": (_runs_code, "megatron|not fetched"),
    "a pattern that takes for ever": (settings(target_modules=r"(\w|\.|\w\.)*!"), "for ever"),
    "a pattern of ranks that takes for ever": (settings(rank_pattern={r"(\w|\.|\w\.)*!": 4}), "rank_pattern|name"),
    "pickled weights alone": (_pickled_only, "adapter_model.safetensors|not fetched"),
    "weights that are cut off": (_raw(lambda data: data[: len(data) // 2]), "cannot be read"),
    "a header that is longer than the file": (
        _raw(lambda data: (2**60).to_bytes(8, "little") + data[8:]),
        "cannot be read",
    ),
}
"""What can be told from the folder alone: a change to it, and what is said of it."""

FOR_ITS_BASE: dict[str, tuple[Change, str]] = {
    "another width": (
        lambda _, t, __: t.update({f"{Q}.lora_A.weight": torch.ones(4, 63)}),
        "(?s)63|fit",
    ),
    "a layer that the base has not": (_another_layer, "layers.7"),
    "a layer without its tensors": (_without_layer, "layers.1"),
}
"""What can be told with the base at hand."""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    written = write_staged(tmp_path_factory.mktemp("staged"))
    config = json.loads((written.folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(written.base)
    (written.folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    restage(written.folder)
    return written


def doctor(staged: Staged, change: Change, folder: Path) -> Path:
    """Copy the adapter and change it; its publish.json is written anew over what it holds then."""
    shutil.copytree(staged.folder, folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    change(config, tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    if "as it is" not in tensors:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if (folder / "adapter_model.bin").exists():
        (folder / WEIGHTS).unlink()
    restage(folder)
    return folder


Command = Callable[[Path, Staged, Path], Outcome]
"""Runs a command on a doctored folder; the last is where it may write."""

ALONE: dict[str, Command] = {
    "adapter show": lambda bad, _, __: finetune_command("adapter", "show", str(bad)),
    "adapter diff": lambda bad, good, _: finetune_command("adapter", "diff", str(good.folder), str(bad)),
    "adapter combine": lambda bad, good, out: finetune_command(
        "adapter", "combine", str(bad), str(good.folder), "--how", "sum", "--out", str(out)
    ),
    "pull": lambda bad, _, out: finetune_command("pull", f"folder:{bad}", "--out", str(out), "--cache", str(out)),
}


def _chat(*arguments: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("Which word is it?\n"))
        return finetune_command("chat", *arguments, "--max-new-tokens", "2")


WITH_BASE: dict[str, Command] = {
    "adapter check": lambda bad, good, _: finetune_command("adapter", "check", str(bad), "--base", str(good.base)),
    "adapter merge": lambda bad, good, out: finetune_command(
        "adapter", "merge", str(bad), "--base", str(good.base), "--out", str(out)
    ),
    "adapter export": lambda bad, good, out: finetune_command(
        "adapter", "export", str(bad), "--base", str(good.base), "--out", str(out)
    ),
    "launch-line": lambda bad, good, _: finetune_command("launch-line", str(bad), "--base", str(good.base)),
    "chat": lambda bad, good, out: _chat(str(bad), "--cache", str(out)),
    "chat --adapter": lambda bad, good, out: _chat(
        str(good.base), "--adapter", f"good={good.folder}", "--adapter", f"bad={bad}", "--cache", str(out)
    ),
    "serve --adapter": lambda bad, good, out: finetune_command(
        "serve", str(good.base), "--adapter", str(bad), "--dry-run", "--cache", str(out)
    ),
    "pull --base": lambda bad, good, out: finetune_command(
        "pull", f"folder:{bad}", "--base", str(good.base), "--out", str(out), "--cache", str(out)
    ),
    "evaluation": lambda bad, good, out: evaluation_command(
        *("run", "--model", str(good.base), "--adapter", str(bad), "--task", "plain_facts", "--limit", "1"),
        *("--dtype", "float32", "--name", "x", "--out", str(out)),
    ),
}

CASES = [
    *((kind, command) for kind in INTRINSIC for command in (*ALONE, *WITH_BASE)),
    *((kind, command) for kind in FOR_ITS_BASE for command in WITH_BASE),
]


def what_went_wrong(kind: str, command: str, staged: Staged, place: Path) -> str:
    """Try a doctored adapter at a command; "" where it is refused as it should be."""
    change, said = (INTRINSIC | FOR_ITS_BASE)[kind]
    bad = doctor(staged, change, place / "bad")
    out = place / "out"
    began = time.monotonic()
    outcome = (ALONE | WITH_BASE)[command](bad, staged, out)
    took = time.monotonic() - began
    if outcome.status != 3:
        return f"ended with {outcome.status}: {outcome.stderr[-300:]}"
    if not re.search(said, outcome.stderr):
        return f"does not say {said!r}: {outcome.stderr[-300:]}"
    if (place / "executed").exists():
        return "its code was run"
    if took > SLOWEST_SECONDS:
        return f"took {took:.0f} s"
    if out.exists() and any(path.is_file() for path in out.rglob("*")):
        return f"left {sorted(path.name for path in out.rglob('*'))[:3]}"
    return ""


@pytest.mark.parametrize("command", [*ALONE, *WITH_BASE])
def test_the_good_one_is_taken(command: str, staged: Staged, tmp_path: Path) -> None:
    """Else every refusal would be worth nothing."""
    good = doctor(staged, lambda *_: None, tmp_path / "good")
    outcome = (ALONE | WITH_BASE)[command](good, staged, tmp_path / "out")
    if command.startswith("serve"):  # vLLM alone takes adapters, and is not installed
        assert "vllm" in outcome.stderr
    elif command == "launch-line":  # says that a server would not stop, which only a whole check comes to
        assert "zero" not in outcome.stderr
    else:
        assert outcome.status == 0, outcome.stderr


@pytest.mark.parametrize("kind", [*INTRINSIC, *FOR_ITS_BASE])
def test_each_is_refused_by_one_command(kind: str, staged: Staged, tmp_path: Path) -> None:
    assert what_went_wrong(kind, "adapter check", staged, tmp_path) == ""


@pytest.mark.slow
def test_each_is_refused_by_every_command(staged: Staged, tmp_path: Path, figures: Figures) -> None:
    wrong = []
    for number, (kind, command) in enumerate(CASES):
        place = tmp_path / str(number)
        place.mkdir()
        if found := what_went_wrong(kind, command, staged, place):
            wrong.append(f"{command}, {kind}: {found}")
        shutil.rmtree(place)
    note = f"{len(INTRINSIC) + len(FOR_ITS_BASE)} kinds, {len(ALONE) + len(WITH_BASE)} commands"
    figures.report(
        "Adapters",
        "a doctored adapter is refused by name, and nothing written",
        len(CASES),
        "kinds × commands",
        len(wrong),
        note,
    )
    assert not wrong, "\n".join(wrong)


OTHER_BASE: dict[str, Command] = {
    name: WITH_BASE[name]
    for name in ("adapter check", "adapter merge", "adapter export", "launch-line", "chat", "pull --base")
}


@pytest.mark.parametrize("command", OTHER_BASE)
def test_a_published_adapter_is_not_put_on_another_base(command: str, staged: Staged, tmp_path: Path) -> None:
    """The same shapes, other weights: the hash in publish.json alone tells."""
    other = Staged(staged.folder, write_tiny_base(tmp_path / "other", seed=5))
    folder = doctor(staged, settings(base_model_name_or_path=str(other.base)), tmp_path / "adapter")
    outcome = OTHER_BASE[command](folder, other, tmp_path / "out")
    assert outcome.status == 3
    assert "published" in outcome.stderr
    assert "sha256" in outcome.stderr


def as_a_run(staged: Staged, folder: Path) -> Path:
    """Lay the adapter out as a run's, whose lock says which base it was trained on."""
    shutil.copytree(staged.folder, folder / "adapter", ignore=shutil.ignore_patterns("publish.json"))
    files = hash_base_files(staged.base)
    inputs = LockedInputs(
        base_files=dict(files), tokenizer_sha256="", chat_template_sha256="", row_templates={}, task_files={}
    )
    lock = Lock(
        recipe_sha256="0" * 64,
        base="org/tiny@" + "a" * 40,
        base_revision=None,
        base_sha256=hash_of_files(files),
        base_origin="the Hugging Face hub",
        sources={},
        seed=0,
        versions={},
        inputs=inputs,
    )
    write_model(RunDirectory(folder).lock_file, lock)
    return folder / "adapter"


WITH_A_LOCK: dict[str, Command] = {
    name: WITH_BASE[name] for name in ("adapter check", "adapter merge", "adapter export", "launch-line")
} | {
    "chat --adapter": lambda bad, good, out: _chat(str(good.base), "--adapter", f"x={bad}", "--cache", str(out)),
    "serve --adapter": WITH_BASE["serve --adapter"],
}


@pytest.mark.parametrize("command", WITH_A_LOCK)
def test_a_runs_adapter_is_not_put_on_another_base(command: str, staged: Staged, tmp_path: Path) -> None:
    """The same shapes, other weights: the hash in the run's lock alone tells."""
    adapter = as_a_run(staged, tmp_path / "run")
    other = Staged(staged.folder, write_tiny_base(tmp_path / "other", seed=5))
    outcome = WITH_A_LOCK[command](adapter, other, tmp_path / "out")
    assert outcome.status == 3
    assert "was trained on org/tiny@" in outcome.stderr
    assert "model.safetensors" in outcome.stderr
    outcome = WITH_A_LOCK[command](adapter, staged, tmp_path / "out")
    assert "was trained on" not in outcome.stderr
    RunDirectory(adapter.parent).lock_file.unlink()
    outcome = WITH_A_LOCK[command](adapter, other, tmp_path / "again")  # nobody knows
    assert "was trained on" not in outcome.stderr


def test_a_runs_adapter_may_be_put_on_its_base_with_another_template(staged: Staged, tmp_path: Path) -> None:
    adapter = as_a_run(staged, tmp_path / "run")
    other = Path(shutil.copytree(staged.base, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert WITH_A_LOCK["adapter check"](adapter, Staged(staged.folder, other), tmp_path / "out").status == 0
    (other / "tokenizer.json").unlink()
    outcome = WITH_A_LOCK["adapter check"](adapter, Staged(staged.folder, other), tmp_path / "out")
    assert outcome.status == 3


@pytest.mark.parametrize("command", ["pull", "chat", "evaluation"])
def test_the_code_of_an_adapter_is_not_run(
    command: str, staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = doctor(staged, _auto_map, tmp_path / "bad")
    monkeypatch.chdir(bad)  # where Python looks for modules first
    (ALONE | WITH_BASE)[command](bad, staged, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_one_in_a_list_is_named_and_the_others_are_listed(staged: Staged, tmp_path: Path) -> None:
    doctor(staged, settings(peft_type="LOHA"), tmp_path / "all" / "bad")
    doctor(staged, lambda *_: None, tmp_path / "all" / "good")
    outcome = finetune_command("adapter", "list", str(tmp_path / "all"))
    assert outcome.status == 0
    assert "LOHA" in outcome.stdout
