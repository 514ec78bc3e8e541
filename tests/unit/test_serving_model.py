"""What a server is given: the model's own weights, with settings that make it render, stop and draw as was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir
from talkative import talkative_run
from tiny_model import CHATML, build_tokenizer, write_tiny_base
from transformers import AutoTokenizer

from evaluation.conversation import Conversation, Message
from evaluation.files import sha256_of_file, sha256_of_folder, write_model
from evaluation.rendering import TEMPLATE_DATE, Renderer
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.exporting import ExportProof
from finetune.serving_model import Asked, ServedModel, check_same_prompts, dated_template, find_served, lay_out

DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ '<|im_start|>system\nToday: ' + date_string + '<|im_end|>\n' }}" + CHATML
)
CLOCK = "{{ strftime_now('%d %b %Y') }}"
ASKED = Conversation(messages=(Message(role="user", content="Which word? 🙂"),))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_run(tmp_path_factory)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_base(tmp_path / "base")


def test_weights_are_linked_and_the_settings_are_those_of_the_run(base: Path, tmp_path: Path) -> None:
    stated = {"do_sample": False, "temperature": 0.2, "top_k": 3, "min_p": 0.5, "eos_token_id": 7}
    (base / "generation_config.json").write_text(json.dumps(stated | {"repetition_penalty": 1.3}))
    (base / "code.py").write_text("raise SystemExit")
    served = lay_out(ServedModel("tiny", base), tmp_path / "cache")
    settings = json.loads((served.snapshot / "generation_config.json").read_text())
    assert settings == {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.3,
        "eos_token_id": [2],
        "pad_token_id": 2,
    }
    assert (served.snapshot / "model.safetensors").resolve() == (base / "model.safetensors").resolve()
    assert not (served.snapshot / "code.py").exists()
    assert json.loads((base / "generation_config.json").read_text())["top_k"] == 3


def test_it_is_a_hub_cache_with_one_model(base: Path, tmp_path: Path) -> None:
    served = lay_out(ServedModel("tiny", base), tmp_path / "cache")
    again = lay_out(ServedModel("tiny", base), tmp_path / "cache")
    assert again == served
    found = scan_cache_dir(served.hub)
    assert [repo.repo_id for repo in found.repos] == ["tiny"]
    assert found.warnings == []


@pytest.mark.parametrize("template", [CHATML, DATED, CLOCK + CHATML], ids=["plain", "dated", "clock"])
def test_transformers_renders_it_as_training_did(template: str, base: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(template)
    tokenizer.save_pretrained(base)
    served = lay_out(ServedModel("tiny", base), tmp_path / "cache")
    loaded = AutoTokenizer.from_pretrained(served.snapshot)
    messages = [{"role": "user", "content": "Which word? 🙂"}]
    ids = loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert tuple(ids) == Renderer(tokenizer).prompt(ASKED)
    assert (TEMPLATE_DATE in loaded.decode(ids)) == (template != CHATML)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (None, "no chat template"),
        ({"default": CHATML, "tool_use": CHATML}, "several chat templates"),
        ("{% set how = '%d' %}{{ strftime_now(how) }}" + CHATML, "prints the day"),
    ],
)
def test_a_template_that_cannot_be_held_still_is_refused(template: object, what: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template  # type: ignore[assignment]
    with pytest.raises(DataError, match=what):
        dated_template(Renderer(tokenizer), "here")


def test_adapters_with_other_prompts_than_their_base_are_refused(tmp_path: Path) -> None:
    renderer = Renderer(build_tokenizer())
    build_tokenizer().save_pretrained(tmp_path / "same")
    build_tokenizer(DATED).save_pretrained(tmp_path / "other")
    (tmp_path / "without").mkdir()
    check_same_prompts(renderer, [("same", tmp_path / "same"), ("without", tmp_path / "without")])
    with pytest.raises(DataError, match="other was trained with another chat template"):
        check_same_prompts(renderer, [("same", tmp_path / "same"), ("other", tmp_path / "other")])


def test_a_runs_gguf_is_served_only_with_a_proof_of_its_merged_model(run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    file, beside = own / "tiny.gguf", own / "tiny.gguf.json"

    def found() -> Path | None:
        return find_served(Asked(str(own)), tmp_path, Reporter()).gguf

    file.write_bytes(b"weights")
    assert found() is None
    proof = ExportProof(
        kind="f16",
        model_sha256=sha256_of_folder(own / "merged"),
        file_sha256=sha256_of_file(file),
        probe_texts=1,
        probe_tokens=1,
        max_logit_difference=0.0,
        logit_scale=1.0,
        mean_kl=0.0,
        agreement=1.0,
        doors=(),
    )
    write_model(beside, proof)
    assert found() == file
    file.write_bytes(b"others!")
    assert found() is None
    file.write_bytes(b"weights")
    (own / "merged" / "merge.json").write_text('{"merged_sha256": "merged anew"}')
    assert found() is None


def test_a_model_is_called_as_its_folder(base: Path, tmp_path: Path) -> None:
    odd = base.rename(tmp_path / "my--odd name (1)")
    assert find_served(Asked(str(odd)), tmp_path, Reporter()).name == "my-odd-name-1"
    (tmp_path / "run").mkdir()
    merged = odd.rename(tmp_path / "run" / "merged")
    assert find_served(Asked(str(merged)), tmp_path, Reporter()).name == "run"
