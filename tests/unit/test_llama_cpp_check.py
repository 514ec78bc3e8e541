"""What counts as agreement with llama.cpp, tried with an engine that is made up: the real one is in test_llama_cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_model import build_model, build_tokenizer, write_tiny_base
from tiny_runs import finetune_command

from evaluation.conversation import Conversation, Message
from evaluation.rendering import Renderer
from finetune import llama_cpp, llama_cpp_check
from finetune.errors import MachineError, ProofFailed
from finetune.exporting import describe_llama_cpp
from finetune.llama_cpp_check import ANSWER_TOKENS, QUESTIONS, Files, find_parting, prove_with_llama_cpp


class Engine:
    """Cuts text as the tokenizer does and answers as the model does, but for what it is told to do otherwise."""

    def __init__(self, model: torch.nn.Module, renderer: Renderer) -> None:
        self.model, self.renderer = model, renderer
        self.wrong_tokens = False
        self.second_best_at: int | None = None

    def tokens(self, text: str, *, as_text_begins: bool) -> list[int]:
        ids = self.renderer.tokenizer(text).input_ids if as_text_begins else self.renderer.encode(text)
        return ids[:-1] if self.wrong_tokens else ids

    @torch.inference_mode()
    def continue_greedily(self, ids: Sequence[int], count: int, stops: Sequence[int]) -> list[int]:
        found: list[int] = []
        while len(found) < count and (not found or found[-1] not in stops):
            logits = self.model(input_ids=torch.tensor([[*ids, *found]])).logits[0, -1]
            found.append(int(logits.topk(2).indices[1 if len(found) == self.second_best_at else 0]))
        return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    tokenizer = build_tokenizer()
    made_up = Engine(build_model(len(tokenizer)), Renderer(tokenizer))

    @contextmanager
    def opened(file: Path, lora: Path | None, threads: int, context: int) -> Iterator[Engine]:
        yield made_up

    monkeypatch.setattr(llama_cpp_check, "open_in_llama_cpp", opened)
    monkeypatch.setattr(llama_cpp_check, "require_llama_cpp", lambda: "0")
    return made_up


def prove(engine: Engine) -> llama_cpp_check.LlamaCppProof:
    return prove_with_llama_cpp(Files(Path("x.gguf")), engine.model, engine.renderer, ["a", "b 你好"], QUESTIONS[:3])


def test_the_same_tokens_and_answers_are_agreement(engine: Engine) -> None:
    proof = prove(engine)
    assert (proof.texts, proof.prompts, proof.equal, proof.partings) == (5, 3, 3, ())
    assert describe_llama_cpp(proof) == "llama.cpp 0: 5 texts cut alike, 3/3 answers equal"
    assert "was not asked" in describe_llama_cpp(None)


def test_other_tokens_are_none(engine: Engine) -> None:
    engine.wrong_tokens = True
    with pytest.raises(ProofFailed, match="cuts 'a' differently"):
        prove(engine)


def test_an_answer_may_part_where_two_tokens_are_as_good(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.second_best_at = 2
    monkeypatch.setattr(llama_cpp_check, "LARGEST_GAP", 100.0)
    proof = prove(engine)
    assert [(one.prompt, one.position) for one in proof.partings] == [(0, 2), (1, 2), (2, 2)]
    assert proof.equal == 0
    gaps = [one.gap for one in proof.partings]
    assert min(gaps) > 0
    monkeypatch.setattr(llama_cpp_check, "LARGEST_GAP", max(gaps) * 0.999)
    with pytest.raises(ProofFailed, match=r"otherwise from token 2 on"):
        prove(engine)


def test_the_gap_is_what_the_model_prefers_its_own_token_by(engine: Engine) -> None:
    prompt = engine.renderer.prompt(Conversation(messages=(Message(role="user", content="a"),)))
    stops = engine.renderer.stop_ids()
    own = engine.continue_greedily(prompt, ANSWER_TOKENS, stops)
    assert find_parting(engine.model, prompt, own, stops) is None
    with torch.inference_mode():
        logits = engine.model(input_ids=torch.tensor([[*prompt, *own[:5]]])).logits[0, -1]
    worst = int(logits.argmin())
    parting = find_parting(engine.model, prompt, [*own[:5], worst, *own[6:]], stops)
    assert parting is not None
    assert parting.position == 5
    assert parting.gap == pytest.approx(float(logits.max() - logits.min()), rel=1e-4)


def test_without_the_package_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "has_llama_cpp", lambda: False)
    monkeypatch.setattr("finetune.exporting.export_gguf", lambda *_: pytest.fail("it wrote the file first"))
    with (
        pytest.raises(MachineError, match=r"finetune-recipes\[llama-cpp\]"),
        llama_cpp.open_in_llama_cpp(tmp_path / "x.gguf"),
    ):
        pass
    done = finetune_command(
        "export", str(write_tiny_base(tmp_path / "base")), "--out", str(tmp_path / "x.gguf"), "--llama-cpp"
    )
    assert done.status == 6
    assert "C++ compiler" in done.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_a_file_is_exported_without_llama_cpp_too(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    done = finetune_command("export", str(base), "--out", str(tmp_path / "x.gguf"), "--no-llama-cpp", "--modelfile")
    assert done.status == 0, done.stderr
    assert "llama.cpp was not asked" in done.stderr
    text = (tmp_path / "x.Modelfile").read_text()
    assert "\nFROM ./x.gguf\nTEMPLATE" in text
    assert str(tmp_path) not in text


def test_a_template_that_ollama_cannot_say_stops_the_export_before_it_writes(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    template = "{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}"
    (base / "chat_template.jinja").write_text(template)
    done = finetune_command("export", str(base), "--out", str(tmp_path / "x.gguf"), "--no-llama-cpp", "--modelfile")
    assert done.status == 3
    assert "writes other text around later messages" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
