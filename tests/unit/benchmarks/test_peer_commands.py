"""The contenders: all at the same adapter, rate and length."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.peer_commands import Place, our_recipe
from benchmarks.peer_contenders import CONTENDERS, DEFAULT_PEERS, Contender, environment_of, named
from benchmarks.peer_environments import REQUIREMENTS, NotInstalled, PeerEnvironment, refuse_gpu_build
from benchmarks.peer_rows import RowFiles
from finetune.recipe import Recipe


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "work").mkdir()
    rows = RowFiles(tmp_path / "rows")
    return Place(tmp_path / "model", rows, tmp_path / "work", tmp_path / "converted", tmp_path / "environments")


def test_the_name_of_a_peer_stands_for_all_its_contenders() -> None:
    assert [one.name for one in named(["trl", "ours-nf4"])] == ["ours-nf4", "trl-packed", "trl-padded", "trl-single"]
    assert {one.peer for one in named(DEFAULT_PEERS.split(","))} == {one.peer for one in CONTENDERS} - {"axolotl"}
    with pytest.raises(ValueError, match="no contender is called 'unsloth'; there are: axolotl, "):
        named(["unsloth"])


@pytest.mark.parametrize("contender", [one for one in CONTENDERS if one.peer != "loop"], ids=lambda one: one.name)
def test_all_are_told_the_same_adapter_rate_and_length(contender: Contender, place: Place) -> None:
    command = contender.command(place)
    told = [*command, *(path.read_text() for path in place.work.iterdir())]
    words = set(re.split(r"[\s,:{}\"]+", " ".join(told)))
    assert {"16", "1024"} <= words
    assert words & {"32", "32.0"}
    assert words & {"2e-4", "0.0002"}


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: one.name)
def test_all_run_offline_on_the_processor_with_their_own_programs(contender: Contender, place: Place) -> None:
    environment = environment_of(contender, place)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    installed = contender.peer in REQUIREMENTS
    assert installed == environment["PATH"].startswith(str(place.caches / contender.peer / "bin"))
    assert installed == ("PYTHONPATH" not in environment)


@pytest.mark.parametrize("nf4", [False, True])
def test_our_recipe_is_one(nf4: bool, place: Place) -> None:
    recipe = Recipe.model_validate_json(json.dumps(our_recipe(place.model, place.rows, nf4)))
    assert (recipe.quantization is not None) == nf4
    assert recipe.training.tokens_per_step == 1024


def test_a_build_for_gpus_is_refused() -> None:
    refuse_gpu_build(["torch", "nvidia-ml-py"])  # the second speaks to the driver and is small
    with pytest.raises(NotInstalled, match="nvidia-cublas"):
        refuse_gpu_build(["torch", "nvidia-cublas"])


def test_an_environment_of_other_requirements_counts_as_not_made(tmp_path: Path) -> None:
    environment = PeerEnvironment("litgpt", tmp_path)
    assert not environment.is_made
    environment.folder.mkdir()
    mark = environment.folder / "requirements.txt"
    mark.write_text("\n".join(environment.requirements) + "\n")
    assert environment.is_made
    environment.make()  # and so does not ask pip
    mark.write_text("torch==2.12.0\nlitgpt==0.5.13\n")
    assert not environment.is_made
