"""llama.cpp itself reads what is exported: the same tokens, the same greedy answers, on a tiny and on the real base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from figures import Figures
from test_gguf_adapter import write_adapter
from tiny_model import build_model, build_tokenizer, write_tiny_base
from tiny_runs import finetune_command
from transformers import PreTrainedModel

from evaluation.conversation import Conversation, Message
from evaluation.model import ModelSpec, load_base, load_model
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.base_files import open_base
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.errors import DataError, MachineError
from finetune.exporting import PROBE_TEXTS
from finetune.gguf import load_gguf
from finetune.gguf_adapter import AdapterKind, export_adapter
from finetune.gguf_export import Kind, export_gguf
from finetune.llama_cpp import has_llama_cpp, open_in_llama_cpp
from finetune.llama_cpp_check import ANSWER_TOKENS, Files, LlamaCppProof, find_parting, prove_with_llama_cpp
from finetune.merging_tokenizer import copy_tokenizer
from finetune.peft_weights import open_peft_folder
from finetune.recipe_file import load_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed: the extra llama-cpp has it"),
]

PROMPTS = (
    "What is the capital of France?",
    "Explain photosynthesis in one sentence.",
    "List three fruits.",
    "Who wrote Hamlet?",
    "Give me a name for a cat.",
    "What is 17 + 25?",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Wie lange ist die Kündigungsfrist für Mieter?",
    "Nenne drei deutsche Städte.",
    "Was ist ein Vertrag?",
    "Erkläre mir die Photosynthese.",
    "Wie heißt die Hauptstadt von Österreich?",
    "Schreibe einen Satz über den Winter.",
    "Übersetze 'Guten Morgen' ins Englische.",
    "Was kostet ein Brötchen?",
    "法国的首都是哪里？",
    "请用一句话解释光合作用。",
    "列出三种水果。",
    "租赁期限届满后合同是否继续有效？",
    "你好，你是谁？",
    "北京有多少人口？",
    "把“谢谢”翻译成英文。",
    "写一个关于春天的句子。",
    "Write a Python function that adds two numbers.",
    "What does `for (int i = 0; i < n; i++)` do?",
    "Fix this: def f(x) return x",
    "SELECT name FROM users WHERE id = 1; -- what is this?",
    "Is this good news? 🎉🙂",
    "What does 👩🏽‍⚕️ mean?",
    "🐱 + 🐶 = ?",
    "Translate to emoji: I love pizza 🍕",
)
"""English, German, Chinese, code and emoji."""


@dataclass(frozen=True)
class Real:
    """The real base in bf16, as `finetune merge` stores a model, and its own greedy answers, computed in fp32."""

    folder: Path
    renderer: Renderer
    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]


def test_the_prompts_are_32() -> None:
    assert len(set(PROMPTS)) == 32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    try:
        base = resolve_base(load_recipe("icd10-quickstart", []).recipe.base, default_cache(), print).folder
    except MachineError as error:
        pytest.skip(f"the base could not be fetched: {error}")
    folder = tmp_path_factory.mktemp("real")
    load_base(ModelSpec(base, dtype="bfloat16", device="cpu")).save_pretrained(folder)
    copy_tokenizer(base, folder)
    model = load_base(ModelSpec(folder, dtype="float32", device="cpu"))
    renderer = Renderer(load_tokenizer(folder))
    asked = tuple(Conversation(messages=(Message(role="user", content=text),)) for text in PROMPTS)
    prompts = tuple(renderer.prompt(one) for one in asked)
    return Real(folder, renderer, prompts, tuple(greedy(model, prompt, renderer.stop_ids()) for prompt in prompts))


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: tuple[int, ...], stops: tuple[int, ...]) -> tuple[int, ...]:
    """Answer as plain transformers does, one prompt at a time."""
    ids = torch.tensor([prompt])
    out = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_on_a_tiny_model_tokens_and_answers_are_the_same(kind: Kind, tiny: Path, tmp_path: Path) -> None:
    export_gguf(tiny, tmp_path / "out.gguf", kind, "tiny")
    model, _ = load_gguf(tmp_path, "out.gguf")
    proof = prove_with_llama_cpp(
        Files(tmp_path / "out.gguf"), model.eval(), Renderer(load_tokenizer(tiny)), PROBE_TEXTS, PROMPTS
    )
    assert proof.texts == len(PROBE_TEXTS) + 32
    # On random weights many tokens are as good as another, and 8 bits round each input of a matrix as well.
    assert proof.equal >= (20 if kind == "q8_0" else 30), proof.partings
    assert all(parting.gap < 0.05 for parting in proof.partings)


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True, "rank_pattern": {"k_proj": 3}}], ids=["plain", "rslora"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_an_adapter_file_answers_as_peft_does(
    kind: AdapterKind, variant: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tiny, tmp_path / "adapter", **variant)
    export_gguf(tiny, tmp_path / "base.gguf", "f32", "tiny")
    export_adapter(open_peft_folder(folder), open_base(tiny), tmp_path / "lora.gguf", kind)
    model = load_model(ModelSpec(tiny, adapter=folder, dtype="float32", device="cpu"))
    renderer = Renderer(load_tokenizer(tiny))
    proof = prove_with_llama_cpp(
        Files(tmp_path / "base.gguf", tmp_path / "lora.gguf"), model, renderer, PROBE_TEXTS, PROMPTS
    )
    assert proof.equal >= 30, proof.partings
    without = load_base(ModelSpec(tiny, dtype="float32", device="cpu"))
    assert sum(find_parting(without, *one) is not None for one in asked(model, renderer)) > 16


def asked(model: object, renderer: Renderer) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    for text in PROMPTS:
        prompt = renderer.prompt(Conversation(messages=(Message(role="user", content=text),)))
        yield prompt, greedy(model, prompt, renderer.stop_ids()), renderer.stop_ids()  # type: ignore[arg-type]


def test_the_command_asks_llama_cpp_where_it_is_installed(tiny: Path, tmp_path: Path) -> None:
    done = finetune_command("export", str(tiny), "--out", str(tmp_path / "x.gguf"), "--modelfile")
    assert done.status == 0, done.stderr
    assert "answers equal" in done.stderr
    assert json.loads((tmp_path / "x.gguf.json").read_text())["llama_cpp"]["prompts"] == 6
    assert (tmp_path / "x.Modelfile").exists()
    folder = write_adapter(tiny, tmp_path / "adapter")
    out = str(tmp_path / "lora.gguf")
    done = finetune_command("adapter", "export", str(folder), "--base", str(tiny), "--out", out, "--llama-cpp")
    assert done.status == 0, done.stderr
    assert json.loads((tmp_path / "lora.gguf.json").read_text())["llama_cpp"]["prompts"] == 6
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_what_is_no_model_and_a_wrong_adapter_are_told(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUFnothing")
    with pytest.raises(DataError, match=r"llama\.cpp cannot load it"), open_in_llama_cpp(tmp_path / "no.gguf"):
        pass
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), hidden_size=32).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    export_gguf(tmp_path / "other", tmp_path / "other.gguf", "f32", "other")
    adapter = open_peft_folder(write_adapter(tiny, tmp_path / "adapter"))
    export_adapter(adapter, open_base(tiny), tmp_path / "lora.gguf", "f32")
    with (
        pytest.raises(DataError, match=r"llama\.cpp cannot load it: .*wrong base model"),
        open_in_llama_cpp(tmp_path / "other.gguf", tmp_path / "lora.gguf"),
    ):
        pass


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_the_real_base_answers_the_same_in_every_engine(
    kind: Kind, real: Real, tmp_path: Path, figures: Figures
) -> None:
    export_gguf(real.folder, tmp_path / "out.gguf", kind, "real")
    reloaded, _ = load_gguf(tmp_path, "out.gguf")
    stops = real.renderer.stop_ids()
    pairs = zip(real.prompts, real.answers, strict=True)
    assert [one for one in pairs if find_parting(reloaded.eval(), *one, stops)] == []
    proof = prove_with_llama_cpp(Files(tmp_path / "out.gguf"), reloaded, real.renderer, PROBE_TEXTS, PROMPTS)
    figures.report("Export", f"{kind} reloaded by transformers: greedy answer is the model's own", 32, "prompts", 0)
    report(figures, f"{kind} in llama.cpp: greedy answer is that of the file reloaded by transformers", proof)
    # llama.cpp rounds the inputs of a bf16 matrix to bf16 as well, which transformers does not.
    assert proof.equal >= (30 if kind == "f16" else 24), proof.partings


def test_an_adapter_file_on_the_real_base_answers_as_peft_does(real: Real, tmp_path: Path, figures: Figures) -> None:
    folder = write_adapter(real.folder, tmp_path / "adapter", r=8, use_rslora=True, lora_alpha=4)
    export_gguf(real.folder, tmp_path / "base.gguf", "f32", "real")
    export_adapter(open_peft_folder(folder), open_base(real.folder), tmp_path / "lora.gguf", "f16")
    model = load_model(ModelSpec(real.folder, adapter=folder, dtype="float32", device="cpu"))
    files = Files(tmp_path / "base.gguf", tmp_path / "lora.gguf")
    proof = prove_with_llama_cpp(files, model, real.renderer, PROBE_TEXTS, PROMPTS)
    report(figures, "LoRA as GGUF (f16) in llama.cpp: greedy answer is peft's", proof)
    assert proof.equal >= 30, proof.partings


def report(figures: Figures, claim: str, proof: LlamaCppProof) -> None:
    gaps = ", ".join(f"{parting.gap:.3f}" for parting in proof.partings)
    parted = proof.prompts - proof.equal
    note = f"parted at gaps of {gaps} logits" if gaps else f"{proof.texts} texts cut alike"
    figures.report("Export", claim, proof.prompts, "prompts", parted, note)
