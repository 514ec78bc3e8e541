"""`finetune export`: writes a GGUF file, reads it back with transformers, and proves that it is the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import LlamaModel, PreTrainedModel

from evaluation.files import sha256_of_file, sha256_of_folder, staged_file, write_model, write_text
from evaluation.model import ModelSpec, load_base
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.base_files import open_base
from finetune.console import Reporter
from finetune.disk_space import require_space, weights_bytes
from finetune.doors import compare_tokenizers
from finetune.errors import ProofFailed
from finetune.gguf import load_gguf
from finetune.gguf_export import Kind, export_gguf, read_frequencies
from finetune.gguf_names import read_shape
from finetune.llama_cpp import has_llama_cpp, require_llama_cpp
from finetune.llama_cpp_check import Files, LlamaCppProof, prove_with_llama_cpp
from finetune.merge_records import DoorProof
from finetune.merged_files import model_folder
from finetune.modelfile import build_modelfile

LARGEST_KL = {"f32": 1e-6, "f16": 1e-3, "bf16": 1e-2, "q8_0": 0.05, "q4_1": 3.0, "q4_0": 3.0}
"""Mean KL divergence of the answers read back from the model's, in nats.

For 4 bits it tells wrong weights, not bad ones: what rounding costs is for scoring to say.
"""
DOOR_CONVERSATIONS = 100
PROBE_TEXTS = (
    "The patient has had a fever since Monday and takes 500 mg of paracetamol twice a day.",
    "Either party may terminate this agreement with thirty (30) days' written notice.",
    "Wie lange ist die Kündigungsfrist für Mieter? Drei Monate, § 573c BGB.",
    "租赁期限届满，承租人继续使用租赁物，出租人没有提出异议的，原租赁合同继续有效。",
    "def total(prices: list[float]) -> float:\n    return sum(p for p in prices if p > 0)\n",
    "مرحبا، كيف يمكنني تجديد الوصفة الطبية؟ 👩🏽‍⚕️",
    "  two  spaces,\ttabs\r\nand a line end; 1234567890, 3.14e-10, £5.",
)
"""Texts that the tokens and the answers are compared on."""


class ExportProof(BaseModel):
    """<file>.json beside an exported file: what was compared, and how far it is off."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    model_sha256: str
    file_sha256: str
    probe_texts: int
    """Texts that were tokenized by the model's tokenizer and by the file's: all equal."""
    probe_tokens: int
    max_logit_difference: float
    """Largest absolute difference of logits on the probe, in fp32."""
    logit_scale: float
    mean_kl: float
    """Mean KL divergence of the file's predictions from the model's, in nats."""
    agreement: float
    """Share of positions with the same most probable token."""
    doors: tuple[DoorProof, ...]
    """Ways in that make of conversations what scoring makes of them."""
    llama_cpp: LlamaCppProof | None = None
    """What llama.cpp made of the file, where it was asked."""


@dataclass(frozen=True)
class Extras:
    """What an export does beside writing the file and reading it back."""

    modelfile: bool = False
    """Write a Modelfile for Ollama."""
    llama_cpp: bool | None = None
    """Ask llama.cpp as well; where it is installed, if nothing is said."""
    name: str | None = None
    """What the file calls the model; as its folder is called, if nothing is said."""


def export_model(model: Path, out: Path, kind: Kind, extras: Extras | None = None) -> None:
    """Write a run's merged model, or any LLaMA model folder, as a GGUF file with its proof beside it.

    Raises:
        DataError: there is no such model, or the format cannot hold it.
        MachineError: llama.cpp was to be asked and is not installed.
        ProofFailed: what is read back is not the model; nothing is written.
    """
    wanted = extras or Extras()
    asks_llama_cpp = has_llama_cpp() if wanted.llama_cpp is None else wanted.llama_cpp
    if asks_llama_cpp:
        require_llama_cpp()
    folder = model_folder(model)
    reporter = Reporter()
    beside = out.with_name(f"{out.name}.json")
    modelfile = _modelfile(folder, out) if wanted.modelfile else None
    require_space(out.parent, weights_bytes(folder, kind), "the export")
    with staged_file(out) as staging:
        with reporter.bar(f"write {kind}", len(open_base(folder).files)) as advance:
            export_gguf(folder, staging, kind, wanted.name or _name(model), advance)
        with reporter.bar("read back and compare", 1) as advance:
            proof = prove_export(folder, staging, kind, asks_llama_cpp)
            advance(1)
        beside.unlink(missing_ok=True)  # it is about the file that is replaced now
    write_model(beside, proof)
    size = out.stat().st_size / 2**20
    reporter.say(f"{out}: {size:,.0f} MiB, tokens equal, KL {proof.mean_kl:.1e}, {proof.agreement:.1%} agreement")
    reporter.say(f"  {describe_llama_cpp(proof.llama_cpp)}")
    if modelfile is not None:
        write_modelfile(out, modelfile, reporter)


def _modelfile(folder: Path, out: Path) -> str:
    context = read_shape(open_base(folder)).max_position_embeddings
    comment = f"{out.name} for Ollama: ollama create {out.stem} -f {modelfile_of(out).name}"
    return build_modelfile(Renderer(load_tokenizer(folder)), (f"FROM ./{out.name}",), context, comment)


def modelfile_of(out: Path) -> Path:
    """Name the Modelfile that lies beside an exported file."""
    return out.with_name(f"{out.stem}.Modelfile")


def write_modelfile(out: Path, text: str, reporter: Reporter) -> None:
    """Write the Modelfile of an exported file, and say how to use it."""
    file = modelfile_of(out)
    write_text(file, text)
    reporter.say(f"{file}: the chat template in Ollama's language, compared with the model's own")
    reporter.say(f"  ollama create {out.stem} -f {file}")


def describe_llama_cpp(proof: LlamaCppProof | None) -> str:
    """Say in one line what llama.cpp was asked."""
    if proof is None:
        return "llama.cpp was not asked (--llama-cpp does so where it is installed)"
    gaps = "".join(f", parted at a gap of {parting.gap:.3f} logits" for parting in proof.partings)
    return (
        f"llama.cpp {proof.version}: {proof.texts} texts cut alike, {proof.equal}/{proof.prompts} answers equal{gaps}"
    )


def prove_export(folder: Path, file: Path, kind: Kind, asks_llama_cpp: bool = False) -> ExportProof:
    """Compare a model with what transformers reads back from its file, and that with what llama.cpp reads.

    Raises:
        ProofFailed: tokens or template are others, or the predictions are further off than the kind's rounding.
    """
    before = load_base(ModelSpec(folder, dtype="float32", device="cpu"))
    tokenizer = load_tokenizer(folder)
    after, read_tokenizer = load_gguf(file.parent, file.name)
    # transformers 5.23 reads no rotary scaling from a GGUF file of this architecture; llama.cpp does.
    cast(LlamaModel, after.base_model).rotary_emb.register_buffer("inv_freq", read_frequencies(file), persistent=False)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in PROBE_TEXTS]
    for text, expected in zip(PROBE_TEXTS, ids, strict=True):
        if read_tokenizer(text, add_special_tokens=False).input_ids != expected:
            raise ProofFailed(f"the file's tokenizer cuts {text[:40]!r} differently", where=str(file))
    if read_tokenizer.chat_template != tokenizer.chat_template:
        raise ProofFailed("the file has another chat template", where=str(file))
    doors = compare_tokenizers("GGUF, transformers", tokenizer, read_tokenizer, DOOR_CONVERSATIONS)
    expected_NV, found_NV = _logits(before, ids), _logits(after.eval(), ids)
    asked = prove_with_llama_cpp(Files(file), after, Renderer(tokenizer), PROBE_TEXTS) if asks_llama_cpp else None
    log_p, log_q = torch.log_softmax(expected_NV, -1), torch.log_softmax(found_NV, -1)
    proof = ExportProof(
        kind=kind,
        model_sha256=sha256_of_folder(folder),
        file_sha256=sha256_of_file(file),
        probe_texts=len(PROBE_TEXTS),
        probe_tokens=len(expected_NV),
        max_logit_difference=float((expected_NV - found_NV).abs().max()),
        logit_scale=float(expected_NV.abs().max()),
        mean_kl=float((log_p.exp() * (log_p - log_q)).sum(-1).double().mean()),
        agreement=float((expected_NV.argmax(-1) == found_NV.argmax(-1)).double().mean()),
        doors=doors,
        llama_cpp=asked,
    )
    limit = LARGEST_KL[kind]
    if not proof.mean_kl <= limit:  # so that what is no number is refused, too
        raise ProofFailed(f"what is read back predicts otherwise: KL {proof.mean_kl:.1e} nats, the limit is {limit:g}")
    return proof


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: list[list[int]]) -> Tensor:
    """Logits of every position of every text, shape (N, V) in fp32."""
    return torch.cat([model(input_ids=torch.tensor([one])).logits[0].float() for one in ids])


def _name(model: Path) -> str:
    return model.resolve().name
