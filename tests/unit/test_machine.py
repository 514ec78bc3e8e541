from __future__ import annotations

import getpass
import io
import os
import platform
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny_training import tiny_recipe

from evaluation.model import ModelSpec, Quantization
from evaluation.rendering import IGNORE, Example
from finetune import machine
from finetune.adapter import ADAPTER_FILE, adapter_hash
from finetune.bases import ResolvedBase
from finetune.console import Reporter
from finetune.contenders import contenders, trained_spec
from finetune.example_files import example_at, load_examples, write_examples
from finetune.machine import PACKAGES, describe_environment, peak_memory_bytes, versions
from finetune.merge_records import MergeProof
from finetune.recipe import Evaluation
from finetune.run_directory import RunDirectory
from finetune.training_job import TrainingJob

# ------------------------------------------------------------------ the environment


def test_environment_names_no_user_host_or_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "canary-user")
    monkeypatch.setenv("HOME", "/home/canary-user")
    monkeypatch.setattr(platform, "node", lambda: "canary-host")
    text = describe_environment().model_dump_json()
    for private in ("canary", os.uname().nodename, str(Path.cwd()), sys.prefix, "/home", f'"{getpass.getuser()}"'):
        assert private not in text
    assert "/" not in text.replace(" / ", "")


def test_environment_says_what_decides_a_result() -> None:
    found = describe_environment()
    assert set(found.versions) == set(PACKAGES)
    assert found.versions["torch"] == torch.__version__
    assert found.python == platform.python_version()
    assert found.torch_threads == torch.get_num_threads()
    assert found.memory_bytes > 2**28
    assert found.processor
    assert versions() == found.versions


def test_processor_has_a_name_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **kwargs: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert machine._processor() == "arm64"


def test_peak_memory_is_in_bytes_and_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    before = peak_memory_bytes()
    assert 2**26 < before < 2**42
    held = np.ones(2**23)
    assert peak_memory_bytes() >= before
    assert held.nbytes == 2**26
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_bytes() <= before  # the unit is bytes there


# ------------------------------------------------------------------ examples on disk

EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=20).map(
        lambda pairs: Example(tuple(i for i, _ in pairs), tuple(i if ours else IGNORE for i, ours in pairs))
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=30, deadline=None)
@given(examples=EXAMPLES)
def test_examples_come_back_as_they_were(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("examples") / "train.arrow"
    write_examples(path, iter(examples))
    found = load_examples(path)
    assert found.column_names == ["input_ids", "labels"]
    assert [example_at(found, i) for i in range(len(found))] == examples


def test_same_examples_are_the_same_bytes(tmp_path: Path) -> None:
    examples = [Example((1, 2, 3), (IGNORE, 2, 3))] * 3
    for name in ("a", "b"):
        write_examples(tmp_path / name, examples)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ------------------------------------------------------------------ what is printed


def test_bar_on_a_terminal_shows_how_far_it_is() -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=100, force_terminal=True, color_system=None))
    with reporter.bar("fold", 4) as advance:
        advance(3)
    with reporter.training(2) as bar:
        bar.update(1, 2.0, 10.0, None)
    assert "fold" in out.getvalue()
    assert "3/4" in out.getvalue()
    assert "  step" not in out.getvalue()


def test_reporter_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


# ------------------------------------------------------------------ who is scored


@pytest.mark.parametrize("quantized", [False, True])
def test_contenders_are_the_base_the_adapter_as_trained_and_the_merge_as_shipped(
    tmp_path: Path, quantized: bool
) -> None:
    recipe = tiny_recipe(
        tmp_path / "base",
        base={"dtype": "bfloat16"},
        merge={"dtype": "float16"},
        quantization={"kind": "nf4", "double_quant": False} if quantized else None,
    )
    run = RunDirectory(tmp_path / "run")
    run.adapter.mkdir(parents=True)
    (run.adapter / ADAPTER_FILE).write_bytes(b"weights")
    run.merged.mkdir()
    figures = dict.fromkeys(MergeProof.model_fields, 0.5)
    whole = {"onto": "full_precision", "dtype": "float16", "candidates": (), "probe_rows": 1, "probe_tokens": 1}
    whole |= {"doors": (), "greedy": None, "files": {}}
    proof = MergeProof.model_validate({**figures, **whole, "merged_sha256": "d" * 64})
    (run.merged / "merge.json").write_text(proof.model_dump_json())

    base = ResolvedBase(tmp_path / "base", "named", (("config.json", "b" * 64),), "origin")
    found = {contender.name: contender for contender in contenders(recipe, run, base)}
    assert list(found) == ["base", "adapter", "merged"]
    form = Quantization("nf4", double_quant=False) if quantized else None
    assert found["base"].spec == ModelSpec(
        base.folder, dtype="bfloat16"
    )  # the base itself is scored as it is published
    assert found["adapter"].spec == ModelSpec(base.folder, run.adapter, form, "bfloat16")
    assert found["adapter"].spec == trained_spec(recipe, run, base.folder)
    assert found["merged"].spec == ModelSpec(run.merged, dtype="float16")
    assert [one.model_sha256 for one in found.values()] == [base.sha256, base.sha256, "d" * 64]
    assert [one.adapter_sha256 for one in found.values()] == [None, adapter_hash(run.adapter), None]

    wanted = recipe.model_copy(update={"evaluation": Evaluation(contenders=("merged_nf4", "merged_int8"))})
    *_, nf4, int8 = contenders(wanted, run, base)
    assert (nf4.name, nf4.spec) == ("merged_nf4", ModelSpec(run.merged, None, Quantization("nf4"), "float16"))
    assert (int8.name, int8.spec) == ("merged_int8", ModelSpec(run.merged, None, Quantization("int8"), "float16"))
    assert nf4.model_sha256 == int8.model_sha256 == "d" * 64


def test_job_is_the_same_after_a_file(tmp_path: Path) -> None:
    job = TrainingJob(
        recipe=tiny_recipe(tmp_path, adapter={"targets": ["q_proj"]}),
        run_folder=tmp_path / "run",
        base_folder=tmp_path,
        base_name="b",
        base_revision=None,
        devices=2,
    )
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job
    assert job.run == RunDirectory(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "quick"), [("fpu avx2", False), ("fpu avx2 avx512_bf16", True), ("amx_bf16 fpu", True), (None, False)]
)
def test_a_processor_says_whether_it_is_quick_at_bfloat16(
    flags: str | None, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert path == Path("/proc/cpuinfo")
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags\t\t: {flags}\n"

    monkeypatch.setattr(machine, "version", lambda _: "2.13.0+cpu")
    monkeypatch.setattr(Path, "read_text", read_text)
    assert machine.computes_bfloat16() == quick


@pytest.mark.parametrize(
    ("torch_version", "visible", "device", "quick"),
    [
        ("2.13.0", None, "nvidia0", True),
        ("2.13.0", "0", "nvidia0", True),
        ("2.13.0", "", "nvidia0", False),
        ("2.13.0", "-1", "nvidia0", False),
        ("2.13.0+cpu", None, "nvidia0", False),
        ("2.13.0", None, "nvidiactl", False),
        ("2.13.0", None, "", False),
    ],
)
def test_a_gpu_that_torch_can_use_is_quick_at_bfloat16(
    torch_version: str, visible: str | None, device: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "version", lambda _: torch_version)
    monkeypatch.setattr(machine, "processor_flags", set)
    monkeypatch.setattr(Path, "glob", lambda _, pattern: iter([device] if fnmatch(device, pattern) else []))
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.computes_bfloat16() == quick


@pytest.mark.parametrize(
    ("base", "merge", "bfloat16", "expected"),
    [
        ("auto", "auto", True, ("bfloat16", "bfloat16")),
        ("auto", "auto", False, ("float32", "float32")),
        ("float32", "auto", True, ("float32", "float32")),
        ("auto", "float16", False, ("float32", "float16")),
        ("bfloat16", "auto", False, ("bfloat16", "bfloat16")),
    ],
)
def test_auto_becomes_a_type(base: str, merge: str, bfloat16: bool, expected: tuple[str, str]) -> None:
    recipe = tiny_recipe(Path("base"), base={"dtype": base}, merge={"dtype": merge})
    settled = machine.settle_dtypes(recipe, bfloat16=bfloat16)
    assert (settled.base.dtype, settled.merge.dtype) == expected
    assert settled.model_copy(update={"base": recipe.base, "merge": recipe.merge}) == recipe
