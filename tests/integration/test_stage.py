"""A tiny run is staged through the command line: what is in the folder, what is refused, and that it loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from gguf import GGUFReader
from huggingface_hub import ModelCard
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from tiny_runs import Outcome, Workplace, finetune_command, left_over, write_classification

from evaluation.files import sha256_of_file
from finetune import publish_folder
from finetune.bases import hash_published_base
from finetune.errors import ProofFailed
from finetune.publish_manifest import Manifest, check_files, load_manifest
from finetune.publish_parts import LOCAL_KEYS
from finetune.publish_scan import LICENCE_FILES
from finetune.publishing import check_proofs
from finetune.recipe_file import load_recipe
from finetune.run_directory import STAGES, RunDirectory
from finetune.server_door import ServerProof

pytestmark = pytest.mark.slow  # a whole run is made first

STATED = ("--base-license", "apache-2.0", "--data-license", "cc-by-4.0")
SECRET = "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1b"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = write_classification(tmp_path_factory.mktemp("staged"))
    ran = workplace.run()
    assert ran.status == 0, ran.stderr
    return workplace


@pytest.fixture(scope="module")
def staged(place: Workplace) -> Path:
    """The adapter alone, as it is published if nothing is said."""
    outcome = publish(place, place.folder / "published")
    assert outcome.status == 0, outcome.stderr
    return place.folder / "published"


@pytest.fixture
def copied(place: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the run, to be changed at will."""
    shutil.copytree(place.folder / "run", tmp_path / "run")
    return Workplace(tmp_path, place.recipe)


def publish(place: Workplace, out: Path, *arguments: str, stated: tuple[str, ...] = STATED) -> Outcome:
    command = ("publish", str(place.folder / "run"), "--stage-only", "--out", str(out), "--as", "me/tiny")
    return finetune_command(*command, "--cache", str(place.cache), *stated, *arguments)


def files_of(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths}


def test_the_folder_holds_what_is_promised_and_nothing_else(staged: Path) -> None:
    assert set(files_of(staged)) == {
        "LICENSE",
        "NOTICE",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "data.json",
        "publish.json",
        "recipe.yaml",
        "results.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_publish_json_lists_every_file_and_figure(place: Workplace, staged: Path) -> None:
    manifest = load_manifest(staged)
    check_files(staged, manifest)
    assert (manifest.name, manifest.parts, manifest.quantization) == ("me/tiny", ("adapter",), "nf4-double")
    assert manifest.base.model == "base"
    assert manifest.base.sha256 == hash_published_base(place.base)
    assert {score.contender for score in manifest.scores} == {"base", "adapter", "merged", "majority", "tfidf"}
    assert all(score.low <= score.value <= score.high and score.samples == 13 for score in manifest.scores)
    assert len(manifest.answers) == 3


def test_the_table_shows_files_sizes_and_hashes(place: Workplace, tmp_path: Path) -> None:
    said = publish(place, tmp_path / "out").stderr
    assert "adapter_model.safetensors" in said
    digits = re.sub(r"[^0-9a-f]", "", said)
    assert load_manifest(tmp_path / "out").files[0].sha256[:40] in digits
    assert "apache-2.0 is the licence of the base" in said


def test_staging_twice_gives_the_same_bytes(place: Workplace, staged: Path, tmp_path: Path) -> None:
    assert publish(place, tmp_path / "again").status == 0
    assert files_of(tmp_path / "again") == files_of(staged)
    assert publish(place, tmp_path / "again").status == 0, "an earlier publication is replaced"
    assert files_of(tmp_path / "again") == files_of(staged)


def test_nothing_names_this_machine(place: Workplace, staged: Path) -> None:
    for path in staged.rglob("*"):
        assert str(place.folder).encode() not in path.read_bytes(), path.name
        assert b"pytest" not in path.read_bytes(), path.name


def test_settings_are_sorted_and_without_local_keys(staged: Path) -> None:
    for name in ("adapter_config.json", "tokenizer_config.json"):
        settings = json.loads((staged / name).read_text(encoding="utf-8"))
        assert list(settings) == sorted(settings)
        assert not LOCAL_KEYS & set(settings)
    config = PeftConfig.from_pretrained(str(staged))
    assert config.base_model_name_or_path == "base"
    assert config.target_modules
    listed = json.loads((staged / "adapter_config.json").read_bytes())["target_modules"]
    assert listed == sorted(config.target_modules)


def test_the_recipe_is_one_without_paths(place: Workplace, staged: Path) -> None:
    document = yaml.safe_load((staged / "recipe.yaml").read_text(encoding="utf-8"))
    [source] = document["data"]["train"]
    assert source["source"] == "rows.csv"
    assert source["sha256"] == sha256_of_file(place.folder / "rows.csv")
    assert document["base"]["model"] == "base"
    assert load_recipe(str(staged / "recipe.yaml"), []).recipe.name == "tiny"


def test_results_and_data_hold_figures_and_no_rows(place: Workplace, staged: Path) -> None:
    results = json.loads((staged / "results.json").read_bytes())
    assert {"n", "low", "high"} <= set(results["tasks"][0]["contenders"][0]["metrics"]["exact_match"])
    data = json.loads((staged / "data.json").read_bytes())
    assert data["mask_preview"] == data["leaked"] == []
    assert data["sources"][0]["rows"] == 60
    rows = [line.split(",")[0] for line in (place.folder / "rows.csv").read_text(encoding="utf-8").splitlines()[1:]]
    texts = {path.name: path.read_text(encoding="utf-8") for path in staged.iterdir() if path.suffix != ".safetensors"}
    assert [(name, row) for name, text in texts.items() for row in rows if re.search(rf"\b{row}\b", text)] == []


def test_the_card_is_read_by_the_hub_s_client(staged: Path) -> None:
    card = ModelCard.load(staged / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "peft",
        "text-generation",
    )
    index = card.data.to_dict()["model-index"]
    assert index[0]["name"] == "tiny"
    for result in index[0]["results"]:
        assert result["task"]["type"]
        assert result["dataset"]["type"]
        assert result["dataset"]["name"]
        assert all(metric["type"] and isinstance(metric["value"], float) for metric in result["metrics"])
    assert str(ModelCard(card.content)) == card.content


def test_the_card_says_what_is_asked_of_it(staged: Path) -> None:
    text = (staged / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    for title in (
        "How to load it", "What it answers", "Classical baselines", "Forgetting", "Contamination", "Data", "Template",
        "Recipe", "Merge", "Time, machine, energy", "Limits of use", "Licence", "Hashes",
    ):  # fmt: skip
        assert title in titles
    assert "Not measured: no task but the held-out rows was scored" in text
    assert "None of the 13 scored samples stands among the training rows" in text
    assert "cc-by-4.0" in (staged / "NOTICE").read_text(encoding="utf-8")


PLAIN = """
import re, sys
code = re.search(r"```python\\n(.*?)```", open(sys.argv[1] + "/README.md", encoding="utf-8").read(), re.DOTALL)[1]
code = code.replace('FOLDER = "me/tiny"', f"FOLDER = {sys.argv[1]!r}")
asked = re.search(r'"content": "(.*?)"', code)[1]
load, ask = code.split("messages = ", 1)
exec(load)
import json
for answer in json.load(open(sys.argv[1] + "/publish.json", encoding="utf-8"))["answers"]:
    exec(("messages = " + ask).replace(asked, answer["messages"][0]["content"]))
    print("\\0")
assert not {"finetune", "evaluation"} & set(sys.modules)
"""


def answers_of(folder: Path, place: Workplace) -> list[str]:
    """Run the card's own program in a fresh process, with every question, beside the base and without this package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder)],
        cwd=place.folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [answer.removeprefix("\n").removesuffix("\n") for answer in done.stdout.split("\0")[:-1]]


def test_the_card_s_program_gives_the_card_s_answer(
    place: Workplace, staged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```python\n(.*?)```", (staged / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    monkeypatch.chdir(place.folder)
    exec(found[1].replace('"me/tiny"', repr(str(staged))), {})
    assert capsys.readouterr().out.strip() == load_manifest(staged).answers[0].answer


@pytest.mark.slow
def test_plain_transformers_and_peft_give_the_card_s_answers(place: Workplace, staged: Path) -> None:
    assert [text.strip() for text in answers_of(staged, place)] == [one.answer for one in load_manifest(staged).answers]


@pytest.mark.slow
def test_merged_and_gguf_are_published_with_their_proofs(place: Workplace, tmp_path: Path) -> None:
    outcome = publish(place, tmp_path / "all", "--part", "adapter", "--part", "merged", "--part", "gguf:f16")
    assert outcome.status == 0, outcome.stderr
    names = set(files_of(tmp_path / "all"))
    assert {"merged/model.safetensors", "merged/merge.json", "gguf/tiny-f16.gguf", "gguf/tiny-f16.gguf.json"} <= names
    proof = ServerProof.model_validate_json((tmp_path / "all/merged/serving.json").read_bytes())
    assert (proof.server, proof.conversations, proof.answers) == ("transformers", 64, 8)
    assert f"{proof.equal}/8 answers equal" in (tmp_path / "all/README.md").read_text(encoding="utf-8")
    assert load_manifest(tmp_path / "all").parts == ("adapter", "merged", "gguf")
    run = place.folder / "run"
    assert sha256_of_file(run / "merged/model.safetensors") == files_of(tmp_path / "all")["merged/model.safetensors"]


@pytest.mark.slow
def test_a_merged_model_alone_lies_at_the_top_and_answers(place: Workplace, tmp_path: Path) -> None:
    outcome = publish(place, tmp_path / "merged", "--part", "merged")
    assert outcome.status == 0, outcome.stderr
    assert "model.safetensors" in files_of(tmp_path / "merged")
    assert ModelCard.load(tmp_path / "merged/README.md").data.library_name == "transformers"
    found = [text.strip() for text in answers_of(tmp_path / "merged", place)]
    assert found == [one.answer for one in load_manifest(tmp_path / "merged").answers]


def test_a_merged_model_is_not_published_without_a_server_to_prove_it_at(
    copied: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied.folder / "run" / "serving.json").unlink(missing_ok=True)
    monkeypatch.setattr("finetune.serving.find_spec", lambda _: None)
    refused = publish(copied, tmp_path / "out", "--part", "merged")
    assert refused.status == 6
    assert "pip install 'finetune-recipes[serve]'" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_gguf_alone_shows_no_answers_of_another_program(place: Workplace, tmp_path: Path) -> None:
    outcome = publish(place, tmp_path / "gguf", "--part", "gguf:q8_0")
    assert outcome.status == 0, outcome.stderr
    assert load_manifest(tmp_path / "gguf").answers == ()
    assert GGUFReader(tmp_path / "gguf/gguf/tiny-q8_0.gguf").fields["general.name"].contents() == "tiny"
    assert "llama-cli" in (tmp_path / "gguf/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_not_finished_is_refused(copied: Workplace, stage: str, tmp_path: Path) -> None:
    (copied.folder / "run" / "stages" / f"{stage}.json").unlink()
    refused = publish(copied, tmp_path / "out")
    assert refused.status == 3
    assert f"the stage '{stage}' of this run is not finished" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_was_changed_is_refused(copied: Workplace, tmp_path: Path) -> None:
    (copied.folder / "run" / "report.md").write_text("better than ever", encoding="utf-8")
    refused = publish(copied, tmp_path / "out")
    assert refused.status == 3
    assert "report.md is missing or was changed" in refused.stderr


def test_the_proofs_are_asked_for(copied: Workplace) -> None:
    run = RunDirectory(copied.folder / "run")
    check_proofs(run, ("adapter", "merged", "gguf"))
    proof = (run.merged / "merge.json").read_bytes()
    (run.merged / "merge.json").write_bytes(proof[:40])
    with pytest.raises(ProofFailed, match="damaged"):
        check_proofs(run, ("adapter",))
    (run.merged / "merge.json").unlink()
    with pytest.raises(ProofFailed, match="no proof of the merge"):
        check_proofs(run, ("adapter",))
    document = json.loads(proof)
    assert document["doors"]
    (run.merged / "merge.json").write_text(json.dumps(document | {"doors": []}), encoding="utf-8")
    with pytest.raises(ProofFailed, match="not tried at the doors"):
        check_proofs(run, ("adapter",))
    (run.merged / "merge.json").write_bytes(proof)

    weights = run.merged / "model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1e-3}, weights)
    with pytest.raises(ProofFailed, match="not the one that was proven"):
        check_proofs(run, ("merged",))


def test_another_adapter_is_refused(copied: Workplace) -> None:
    run = RunDirectory(copied.folder / "run")
    weights = run.adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights)
    with pytest.raises(ProofFailed, match="not the one that was trained"):
        check_proofs(run, ("adapter",))
    check_proofs(run, ("merged",))


def test_another_base_is_refused(copied: Workplace, place: Workplace, tmp_path: Path) -> None:
    config = place.base / "config.json"
    before = config.read_bytes()
    config.write_bytes(before + b"\n")
    try:
        refused = publish(copied, tmp_path / "out")
    finally:
        config.write_bytes(before)
    assert refused.status == 3
    assert "not the one that the run was made from" in refused.stderr


def test_without_a_licence_nothing_is_built(place: Workplace, tmp_path: Path) -> None:
    refused = publish(place, tmp_path / "out", stated=())
    assert refused.status == 3
    assert "--base-license" in refused.stderr
    refused = publish(place, tmp_path / "out", stated=("--base-license", "mit", "--data-license", "own"))
    assert refused.status == 3
    assert "a copy of the licence mit has to go along" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


def test_the_text_of_a_base_s_licence_goes_along(place: Workplace, tmp_path: Path) -> None:
    (tmp_path / "llama.txt").write_text("The whole agreement.\nReports: LlamaUseReport@meta.com\n", encoding="utf-8")
    stated = ("--base-license", "llama3.1", "--data-license", "own", "--license-file", str(tmp_path / "llama.txt"))
    assert "begins with 'Llama'" in publish(place, tmp_path / "out", stated=stated).stderr
    outcome = publish(place, tmp_path / "out", "--as", "me/Llama-tiny", stated=stated)
    assert outcome.status == 0, outcome.stderr
    assert "The whole agreement" in (tmp_path / "out/LICENSE").read_text(encoding="utf-8")
    assert "**Built with Llama**" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "Llama 3.1 is licensed under" in (tmp_path / "out/NOTICE").read_text(encoding="utf-8")
    assert LICENCE_FILES.fullmatch("LICENSE.base")


def test_a_secret_in_a_template_stops_it_and_nothing_is_left(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mit.txt").write_text(f"The licence, and {SECRET}\n", encoding="utf-8")
    stated = ("--base-license", "mit", "--data-license", "own", "--license-file", str(tmp_path / "mit.txt"))
    refused = publish(place, tmp_path / "out", stated=stated)
    assert refused.status == 3
    assert "LICENSE, line 1: Hugging Face token" in refused.stderr
    assert SECRET not in refused.stderr
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


def test_publish_json_is_looked_through_as_well(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish_folder.published_scores
    monkeypatch.setattr(
        publish_folder,
        "published_scores",
        lambda report: (made(report)[0].model_copy(update={"metric": "/home/anna/metric"}),),
    )
    refused = publish(place, tmp_path / "out")
    assert (refused.status, "publish.json, line" in refused.stderr) == (3, True)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_texts_of_rows_are_refused_with_their_number(copied: Workplace, tmp_path: Path) -> None:
    report = json.loads((copied.folder / "run/report.json").read_bytes())
    report["audit"]["labels"] |= {"Anna K.": 1}
    (copied.folder / "run/report.json").write_text(json.dumps(report), encoding="utf-8")
    marker = copied.folder / "run/stages/report.json"
    sha256 = sha256_of_file(copied.folder / "run/report.json")
    stage = json.loads(marker.read_bytes())
    stage["outputs"]["report.json"] = sha256
    marker.write_text(json.dumps(stage), encoding="utf-8")
    refused = publish(copied, tmp_path / "out")
    assert (refused.status, "1 of 4 labels" in refused.stderr) == (3, True)
    outcome = publish(copied, tmp_path / "out", "--public-labels")
    assert outcome.status == 0, outcome.stderr
    assert "Anna K." in (tmp_path / "out/data.json").read_text(encoding="utf-8")


def test_a_folder_with_something_else_in_it_is_left_alone(place: Workplace, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    refused = publish(place, tmp_path)
    assert refused.status == 3
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_help_and_mistakes(place: Workplace, tmp_path: Path) -> None:
    assert "Example: finetune publish" in " ".join(finetune_command("publish", "--help").stdout.split())
    assert "--to org/name" in finetune_command("publish", str(place.folder / "run")).stderr
    assert "is no part of a model" in publish(place, tmp_path / "out", "--part", "adaptor").stderr
    assert "kinds: f32" in publish(place, tmp_path / "out", "--part", "gguf:q9").stderr
    assert "cannot be a name" in publish(place, tmp_path / "out", "--as", "a b/c").stderr
    elsewhere = publish(place, tmp_path / "out", "--to", "me/another")
    assert "'me/tiny' is not the name of me/another" in elsewhere.stderr
    assert "is no language" in publish(place, tmp_path / "out", "--language", "English").stderr


def test_the_manifest_is_last_and_whole(staged: Path) -> None:
    written = Manifest.model_validate_json((staged / "publish.json").read_bytes())
    assert written == load_manifest(staged)
    assert "publish.json" not in [file.path for file in written.files]
