"""What a stage will write is estimated on the high side, and a disk without the room is told before it begins."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from tiny_runs import Workplace, write_classification, write_instructions
from tiny_training import tiny_recipe

from evaluation.model import ModelSpec, load_base
from finetune import disk_space
from finetune.adapter import build_adapter
from finetune.base_files import open_base
from finetune.disk_faults import TellingDiskFaults, disk_fault
from finetune.disk_space import (
    SMALL_FILES,
    Sizes,
    adapter_parameters,
    bytes_for,
    folder_size,
    require_space,
    size_text,
    weight_shapes,
)
from finetune.errors import DataError, MachineError
from finetune.exporting import export_model
from finetune.merging_shards import fold_shards
from finetune.peft_weights import open_peft_folder
from finetune.quantizing import export_quantized
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


def test_both_candidates_of_a_merge_are_counted(place: Workplace) -> None:
    sizes = sizes_of(place)
    both = bytes_for("merge", sizes) - 2 * SMALL_FILES
    base = sum(path.stat().st_size for path in place.base.glob("*.safetensors"))
    assert both == pytest.approx(2 * base, rel=0.05)
    one = sizes.recipe.model_copy(update={"quantization": None})
    assert bytes_for("merge", Sizes(one, sizes.run, sizes.base_folder, sizes.sources)) - SMALL_FILES == both / 2


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
