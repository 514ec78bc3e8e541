"""A launch line serves what was trained, or says why the server cannot and what to do."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_gguf_adapter import ALL, leave_out_base_layers, write_adapter
from tiny_model import write_tiny_base
from tiny_runs import finetune_command
from transformers import AutoTokenizer

from finetune.errors import DataError
from finetune.serving import Place, build_launch
from finetune.serving_choice import VLLM_RANKS
from finetune.serving_model import ServedModel


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def line(folder: Path, base: Path, *options: str) -> list[str]:
    done = finetune_command("launch-line", str(folder), "--base", str(base), *options)
    assert done.status == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return shlex.split(done.stdout)


def refusal(folder: Path, base: Path, server: str) -> str:
    done = finetune_command("launch-line", str(folder), "--base", str(base), "--with", server)
    assert done.status == 3, done.stdout
    assert done.stdout == ""
    return done.stderr


def test_an_adapter_is_served_on_its_base_with_the_template_it_was_trained_with(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "my adapter")
    words = line(folder, base)
    assert words[:3] == ["vllm", "serve", str(base)]
    assert words[3:] == ["--enable-lora", "--lora-modules", f"my adapter={folder}", "--max-lora-rank", "8"]
    (folder / "chat_template.jinja").write_text("x")
    assert line(folder, base)[-2:] == ["--chat-template", str(folder / "chat_template.jinja")]
    words = line(folder, base, "--with", "sglang")
    assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", str(base)]
    assert words[5:10] == ["--enable-lora", "--lora-paths", f"my adapter={folder}", "--max-lora-rank", "4"]


def test_the_smallest_rank_that_vllm_allows_is_taken(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", r=17, target_modules=["q_proj"])
    words = line(folder, base)
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert list(VLLM_RANKS) == sorted(VLLM_RANKS)


def test_a_rank_beyond_vllms_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", r=513, target_modules=["q_proj"])
    assert "--max-lora-rank goes up to 512" in refusal(folder, base, "vllm")
    assert "513" in line(folder, base, "--with", "sglang")


REFUSED: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "DoRA": ({"use_dora": True}, "DoRA is not computed", ("vllm", "sglang")),
    "PiSSA": ({"init_lora_weights": "pissa"}, "PiSSA subtracts", ("vllm", "sglang")),
    "whole modules": ({"modules_to_save": ["norm"]}, "trained whole", ("vllm", "sglang")),
    "rows": ({"trainable_token_indices": {"embed_tokens": [3]}}, "single rows", ("vllm", "sglang")),
    "ranks": ({"rank_pattern": {"q_proj": 2}}, "differ in rank,", ("vllm", "sglang")),
    "alphas": ({"alpha_pattern": {"q_proj": 2.0}}, "differ in alpha,", ("vllm", "sglang")),
    "other rank": ({"rank_pattern": dict.fromkeys(ALL, 2)}, "in its settings", ("vllm", "sglang")),
    "other rank, as strong": (
        {"rank_pattern": dict.fromkeys(ALL, 2), "alpha_pattern": dict.fromkeys(ALL, 5.0)},
        "in its settings",
        ("vllm", "sglang"),
    ),
    "other alpha": ({"alpha_pattern": dict.fromkeys(ALL, 2.0)}, "in its settings", ("vllm", "sglang")),
    "rsLoRA": ({"use_rslora": True}, "√rank times too weak", ("sglang",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_loader_would_serve_wrong_is_refused(case: str, base: Path, tmp_path: Path) -> None:
    settings, reason, servers = REFUSED[case]
    folder = write_adapter(base, tmp_path / "adapter", **settings)
    for server in ("vllm", "sglang"):
        if server in servers:
            assert reason in refusal(folder, base, server)
        else:
            assert str(folder) in " ".join(line(folder, base, "--with", server))


def test_a_lora_on_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    leave_out_base_layers(folder)
    for server in ("vllm", "sglang"):
        assert "is left out by some versions" in refusal(folder, base, server)


@pytest.mark.parametrize("case", ["alphas", "other rank", "other alpha", "rsLoRA"])
def test_the_way_out_that_is_named_leads_out(case: str, base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", **REFUSED[case][0])
    hint = refusal(folder, base, "sglang").split("make a plain LoRA of the same change: finetune ")[1]
    words = shlex.split(" ".join(hint.split()))
    done = finetune_command(*words[:-1], str(tmp_path / words[-1]))
    assert done.status == 0, done.stderr
    assert line(tmp_path / "plain", base, "--with", "sglang")
    assert line(tmp_path / "plain", base)


def test_a_whole_model_needs_no_adapter(base: Path, tmp_path: Path) -> None:
    done = finetune_command("launch-line", str(base))
    assert shlex.split(done.stdout) == ["vllm", "serve", str(base), "--served-model-name", base.name]
    run = tmp_path / "run"
    shutil.copytree(base, run / "merged")
    write_adapter(base, run / "adapter")
    done = finetune_command("launch-line", str(run), "--merged", "--with", "sglang")
    assert shlex.split(done.stdout)[-3:] == [str(run / "merged"), "--served-model-name", "run"]
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    done = finetune_command("launch-line", str(run))
    assert f"run={run / 'adapter'}" in shlex.split(done.stdout)


def test_a_folder_with_neither_is_refused(tmp_path: Path) -> None:
    done = finetune_command("launch-line", str(tmp_path))
    assert done.status == 3
    assert "no model in this folder" in done.stderr


def test_an_adapter_on_a_base_that_stops_elsewhere_is_refused(base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "base"))
    folder = write_adapter(other, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.save_pretrained(folder)
    (other / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert line(folder, other)  # the base's tokenizer names the end
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(other)
    for server in ("vllm", "sglang"):
        assert "would not stop where its answers end" in refusal(folder, other, server)
    (other / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert line(folder, other)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    other = write_tiny_base(tmp_path / "other", hidden_size=32)
    assert "in this base" in refusal(folder, other, "vllm")


def test_serve_starts_vllm_with_no_adapter_that_it_cannot_serve(base: Path, tmp_path: Path) -> None:
    plain = write_adapter(base, tmp_path / "plain", target_modules=["q_proj"])
    dora = write_adapter(base, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    place = Place("127.0.0.1", 8000)
    launch = build_launch("vllm", ServedModel("base", base, adapters=(("law", plain),)), base, place)
    assert (launch.adapters, launch.rank) == ((("law", str(plain)),), 4)
    with pytest.raises(DataError, match="vLLM cannot serve it: DoRA"):
        build_launch("vllm", ServedModel("base", base, adapters=(("law", plain), ("both", dora))), base, place)
