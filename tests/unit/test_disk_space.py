"""What a stage will write is estimated on the high side, and a disk without the room is told before it begins."""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from tiny_runs import Workplace, write_classification, write_instructions
from tiny_training import tiny_recipe

from evaluation.model import ModelSpec, load_base
from finetune import disk_space
from finetune.adapter import build_adapter
from finetune.base_files import open_base
from finetune.disk_faults import TellingDiskFaults, as_told, disk_fault
from finetune.disk_space import (
    EVERY_CONTENDER,
    SMALL_FILES,
    Sizes,
    adapter_parameters,
    bytes_for,
    folder_size,
    require_space,
    size_text,
    weight_shapes,
    weights_bytes,
)
from finetune.errors import DataError, MachineError
from finetune.exporting import export_model
from finetune.merging_shards import fold_shards
from finetune.peft_weights import open_peft_folder
from finetune.quantizing import export_quantized
from finetune.recipe import Recipe
from finetune.recipe_file import load_recipe
from finetune.run_directory import STAGES, RunDirectory, Stage


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have so many bytes free."""
    return lambda free: monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: Usage(10**12, 0, free))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace where nothing has been run."""
    return write_classification(tmp_path_factory.mktemp("disk"))


def sizes_of(place: Workplace) -> Sizes:
    recipe = load_recipe(str(place.recipe), []).recipe
    return Sizes(recipe, RunDirectory(place.folder / "run"), place.base, (place.folder / "rows.csv",))


@pytest.mark.slow
def test_estimates_are_above_what_is_written(tmp_path: Path) -> None:
    place = write_classification(tmp_path)
    assert place.run().status == 0
    run = RunDirectory(place.folder / "run")
    written: dict[Stage, list[Path]] = {
        "prepare": [run.data, place.cache / "rows", place.cache / "examples"],
        "train": [run.training, run.adapter],
        "merge": [run.merged],
        "evaluate": [run.evaluation],
        "report": [run.folder / "report.html"],
    }
    assert tuple(written) == STAGES
    for stage, paths in written.items():
        size = sum(folder_size(path) if path.is_dir() else path.stat().st_size for path in paths)
        assert 0 < size <= bytes_for(stage, sizes_of(place))


def test_rows_take_no_more_than_is_estimated(tmp_path: Path) -> None:
    place = write_instructions(tmp_path, rows=2000)
    assert place.run(command="prepare").status == 0
    taken = folder_size(tmp_path / "run" / "data") + folder_size(place.cache)
    estimate = bytes_for("prepare", sizes_of(place)) - SMALL_FILES
    assert estimate / 4 < taken < estimate


def test_a_merge_takes_what_the_base_does(place: Workplace) -> None:
    base = sum(path.stat().st_size for path in place.base.glob("*.safetensors"))
    assert bytes_for("merge", sizes_of(place)) - SMALL_FILES == pytest.approx(base, rel=0.05)


@pytest.mark.parametrize("adapter", [{}, {"variant": "dora"}, {"targets": ["q_proj", "v_proj"], "rank": 7}])
def test_adapters_parameters_are_counted_from_the_headers(place: Workplace, adapter: dict[str, object]) -> None:
    recipe = tiny_recipe(place.base, adapter=adapter)
    model = build_adapter(load_base(ModelSpec(place.base, dtype="float32", device="cpu")), recipe.adapter, 0)
    assert isinstance(model, PeftModel)
    trainable, _ = model.get_nb_trainable_parameters()
    counted = adapter_parameters(recipe.adapter, weight_shapes(place.base))
    assert trainable <= counted <= 1.2 * trainable + 10_000


def test_nothing_is_begun_without_the_room(place: Workplace, tmp_path: Path, disk: Callable[[int], None]) -> None:
    run = RunDirectory(tmp_path / "run")
    assert place.run(command="prepare", out=run.folder).status == 0
    disk(SMALL_FILES)
    outcome = place.run(out=run.folder)
    assert outcome.status == 6
    flat = " ".join(outcome.stderr.split())
    assert "train needs about" in flat
    assert "16 MiB are free" in flat
    assert "free some" in flat
    assert not run.training.exists()
    assert run.marker("prepare")
    assert len(outcome.stderr.splitlines()) < 24


def test_exports_and_folds_are_not_begun_without_the_room(
    place: Workplace, tmp_path: Path, disk: Callable[[int], None]
) -> None:
    recipe = tiny_recipe(place.base)
    adapted = build_adapter(load_base(ModelSpec(place.base, dtype="float32", device="cpu")), recipe.adapter, 0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    disk(SMALL_FILES)
    begun: list[Callable[[], None]] = [
        lambda: export_model(place.base, tmp_path / "out" / "model.gguf", "f16"),
        lambda: export_quantized(place.base, tmp_path / "out" / "int8", "int8"),
        lambda: fold_shards(
            open_base(place.base), open_peft_folder(tmp_path / "adapter"), tmp_path / "out" / "merged", "float32"
        ),
    ]
    for begin in begun:
        with pytest.raises(MachineError, match="of disk, and 16 MiB are free"):
            begin()
    assert not (tmp_path / "out").exists()


def test_what_could_be_freed_is_named_with_its_size(tmp_path: Path, disk: Callable[[int], None]) -> None:
    disk(3 * 2**20)
    for name, size in {"cache/hub": 5, "cache/rows": 2, "runs/other": 4}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "large").write_bytes(bytes(size * 2**20))
    (tmp_path / "runs/other/recipe.lock.json").touch()
    with pytest.raises(MachineError) as error:
        require_space(tmp_path / "runs" / "new", 4 * 2**20, "merge", tmp_path / "cache")
    assert error.value.what == "merge needs about 4 MiB of disk, and 3 MiB are free"
    assert (
        f"{tmp_path}/cache/hub (5 MiB, made or fetched again when it is needed); {tmp_path}/cache/rows"
        in error.value.hint
    )
    assert f"1 other runs in {tmp_path}/runs (4 MiB)" in error.value.hint
    require_space(tmp_path / "runs" / "new", 3 * 2**20, "merge")
    assert size_text(3 * 2**30) == "3.0 GiB"


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 8, b"\x04\0\0\0\0\0\0\0abcd"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="not a safetensors file"):
            weight_shapes(tmp_path)


def test_a_header_is_no_larger_than_safetensors_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {}}'
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    monkeypatch.setattr(disk_space, "LARGEST_HEADER", len(header))
    assert weight_shapes(tmp_path) == {"a": (2, 3)}
    monkeypatch.setattr(disk_space, "LARGEST_HEADER", len(header) - 1)
    with pytest.raises(DataError, match="not a safetensors file"):
        weight_shapes(tmp_path)
    monkeypatch.undo()
    length = disk_space.LARGEST_HEADER + 1
    assert length < 2**30
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(8 + length)
    with pytest.raises(SafetensorError, match="header too large"):
        safe_open(tmp_path / "large.safetensors", "pt")


# ------------------------------------------------------------------ estimates


def estimates(recipe: Recipe, folder: Path, *sources: Path) -> dict[Stage, int]:
    """Estimate what the stages write beside their small files, in bytes."""
    sizes = Sizes(recipe, RunDirectory(folder / "run"), Path(recipe.base.model), sources)
    return {stage: bytes_for(stage, sizes) - SMALL_FILES for stage in STAGES}


def test_the_small_files_are_some_megabytes() -> None:
    assert 2**20 <= SMALL_FILES <= 2**26


def test_packed_rows_are_many_more_than_their_bytes(place: Workplace, tmp_path: Path) -> None:
    text = "".join(f'{{"instruction": "what is {row}?", "output": "it is {row}"}}\n' for row in range(500)).encode()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_bytes(text)
    (tmp_path / "rows.jsonl").write_bytes(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(bytes(len(text)))  # what counts is the name
    recipe = tiny_recipe(place.base)
    plain, folder, packed, both = (
        estimates(recipe, tmp_path, *(tmp_path / name for name in names))["prepare"]
        for names in (["rows.jsonl"], ["rows"], ["rows.jsonl.gz"], ["rows.jsonl", "rows"])
    )
    assert plain == folder == both / 2
    assert 4 * len(text) <= plain <= 8192 * 500
    assert 5 * 4 * len(text) <= packed <= 20 * 20 * len(text)
    (tmp_path / "rows" / "part.parquet").write_bytes(b"")
    assert estimates(recipe, tmp_path, tmp_path / "rows")["prepare"] == packed


def test_checkpoints_hold_an_adapter_about_a_dozen_times(place: Workplace, tmp_path: Path) -> None:
    recipe = tiny_recipe(place.base)
    fp32 = 4 * adapter_parameters(recipe.adapter, weight_shapes(place.base))
    # Written at once: itself, the one that is kept, and three checkpoints of weights, two moments, and the best.
    assert 2 + 3 * 4 <= estimates(recipe, tmp_path)["train"] / fp32 <= 20


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("f32", 4), ("bfloat16", 2), ("float16", 2), ("q8_0", 2)])
def test_weights_take_their_types_bytes(place: Workplace, dtype: str, size: int) -> None:
    parameters = sum(math.prod(shape) for shape in weight_shapes(place.base).values())
    assert weights_bytes(place.base, dtype) == SMALL_FILES + size * parameters


def test_one_merge_is_written_however_many_are_tried(place: Workplace, tmp_path: Path) -> None:
    nf4 = {"quantization": {"kind": "nf4"}}
    best = estimates(tiny_recipe(place.base, **nf4, merge={"onto": "best"}), tmp_path)["merge"]
    assert best == estimates(tiny_recipe(place.base), tmp_path)["merge"] > 0


def test_every_contender_answers_every_sample(place: Workplace, tmp_path: Path) -> None:
    recipe = tiny_recipe(place.base)
    assert estimates(recipe, tmp_path)["evaluate"] == 0
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "held_out.jsonl").write_text('{"id": 1}\n' * 10)
    everyone = estimates(recipe, tmp_path)["evaluate"]
    assert 10 * 1024 <= everyone / len(EVERY_CONTENDER) <= 10 * 16384
    (tmp_path / "run" / "data" / "held_out.jsonl").write_text(f'{{"id": "{"x" * 992}"}}\n' * 10)
    assert estimates(recipe, tmp_path)["evaluate"] - everyone == len(EVERY_CONTENDER) * 10 * (1003 - 10)
    (tmp_path / "run" / "data" / "held_out.jsonl").write_text('{"id": 1}\n' * 10)
    evaluation = recipe.evaluation.model_copy(update={"contenders": ("base", "adapter")})
    two = estimates(recipe.model_copy(update={"evaluation": evaluation}), tmp_path)["evaluate"]
    assert two == everyone * 2 / len(EVERY_CONTENDER)


def test_of_an_adapters_targets_only_matrices_count() -> None:
    recipe = tiny_recipe(Path("base"), adapter={"targets": ["q_proj"], "rank": 4})
    shapes = {"a.q_proj.weight": (8, 6), "a.q_proj.bias": (8,), "b.q_proj.weight": (8,), "a.k_proj.weight": (9, 9)}
    assert adapter_parameters(recipe.adapter, shapes) == 4 * (8 + 6) + 8
    everywhere = tiny_recipe(Path("base"), adapter={"targets": "all-linear", "rank": 4})
    assert adapter_parameters(everywhere.adapter, shapes) == 4 * (8 + 6) + 8 + 4 * (9 + 9) + 9


def test_sizes_are_spelled_in_the_larger_unit() -> None:
    sizes = {0: "0 MiB", 1024 * 2**20 - 1: "1024 MiB", 1024 * 2**20: "1.0 GiB", 5 * 2**20: "5 MiB"}
    assert {size: size_text(size) for size in sizes} == sizes


def test_only_what_is_large_is_named_and_not_the_run_itself(tmp_path: Path, disk: Callable[[int], None]) -> None:
    disk(0)
    sizes = {"cache/a": 2**20, "cache/b": 2**20 - 1, "cache/c": 2**22, "cache/d": 2**21, "cache/e": 2**21 + 1}
    for name, size in (sizes | {"runs/new": 2**22, "runs/small": 2**20 - 1}).items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "large").write_bytes(bytes(size))
    for name in ("new", "small"):
        (tmp_path / "runs" / name / "recipe.lock.json").touch()
    (tmp_path / "cache" / "file").write_bytes(bytes(2**22))
    named = disk_space.what_to_free(tmp_path / "runs" / "new", tmp_path / "cache")
    assert [part in named for part in ("/a (", "/b (", "/c (", "/d (", "/e (", "file", "other runs")] == [
        *(False, False, True, True, True),
        *(False, False),
    ]
    shutil.rmtree(tmp_path / "cache" / "c")
    assert "/a (1 MiB" in disk_space.what_to_free(tmp_path / "runs" / "new", tmp_path / "cache")
    (tmp_path / "runs" / "small" / "more").write_bytes(b"1")
    assert "1 other runs in" in disk_space.what_to_free(tmp_path / "runs" / "new", None)
    nothing = "free some of this disk, or use --out on another one"
    assert disk_space.what_to_free(tmp_path / "elsewhere" / "new", None) == nothing
    assert disk_space.what_to_free(tmp_path / "elsewhere" / "new", tmp_path / "no such cache") == nothing
    assert disk_space.what_to_free(tmp_path / "elsewhere" / "new", tmp_path / "cache" / "file") == nothing


# ------------------------------------------------------------------ faults


class RustError(Exception):
    """As safetensors and tokenizers raise it."""


FAULTS = {
    "system": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "broken": OSError(errno.EIO, "Input/output error"),
    "rust": RustError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "text": RuntimeError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_of_a_disk_are_told_from_others(fault: Exception, tmp_path: Path) -> None:
    assert disk_fault(fault) is not None
    behind = KeyError("while it cleaned up")
    behind.__context__ = fault
    assert disk_fault(behind) is not None
    with pytest.raises(MachineError, match="merge was stopped; what was finished before is as it was"):  # noqa: SIM117
        with TellingDiskFaults("merge", tmp_path):
            raise fault


def test_the_cause_is_found_however_deep_and_a_circle_ends() -> None:
    outer, middle, full = KeyError("a"), KeyError("b"), OSError(errno.EDQUOT, "quota")
    outer.__cause__, middle.__context__ = middle, full
    assert disk_fault(outer) == errno.EDQUOT
    one, other = KeyError("a"), KeyError("b")
    one.__context__, other.__context__ = other, one
    assert disk_fault(one) is None
    number = RustError("no such file (os error 2)")
    number.__context__ = FAULTS["system"]
    assert disk_fault(number) == errno.ENOSPC
    assert disk_fault(RustError(f"writing: {os.strerror(errno.EIO)}")) == errno.EIO
    assert disk_fault(RustError("in another language (os error 5)")) == errno.EIO
    assert disk_fault(OSError(errno.ENOENT, os.strerror(errno.ENOSPC))) is None, "its number counts"


def test_a_full_disk_and_a_broken_one_are_told_apart(tmp_path: Path, disk: Callable[[int], None]) -> None:
    disk(2**20)
    told = {number: as_told(number, "merge", tmp_path / "run", None) for number in (errno.ENOSPC, errno.EIO)}
    assert "the disk is full (1 MiB free): merge was stopped" in told[errno.ENOSPC].what
    assert told[errno.ENOSPC].hint.startswith("free some")
    assert f"the disk fails ({os.strerror(errno.EIO)}): merge was stopped" in told[errno.EIO].what
    assert "dmesg" in told[errno.EIO].hint


def test_what_is_told_already_is_not_told_anew(tmp_path: Path) -> None:
    """A refusal that a full disk is behind has its own words."""
    refusal = DataError("no rows", where="x")
    refusal.__cause__ = FAULTS["system"]
    with pytest.raises(DataError), TellingDiskFaults("merge", tmp_path):
        raise refusal
    with TellingDiskFaults("merge", tmp_path):
        pass


def test_an_interrupt_passes_whatever_came_before(tmp_path: Path) -> None:
    interrupt = KeyboardInterrupt()
    interrupt.__context__ = FAULTS["system"]
    with pytest.raises(KeyboardInterrupt), TellingDiskFaults("merge", tmp_path):
        raise interrupt


def test_other_errors_pass(tmp_path: Path) -> None:
    for other in (OSError(errno.ENOENT, "No such file"), KeyError("x"), DataError("no rows")):
        assert disk_fault(other) is None
        with pytest.raises(type(other)), TellingDiskFaults("merge", tmp_path):
            raise other
