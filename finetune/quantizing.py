"""`finetune export --quantize`: a merged model stored anew in 4 or 8 bits, as safetensors that transformers loads.

Rounding comes last here: the adapter is already in the weights, so that it is rounded with them and not away.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.files import sha256_of_folder, staged_folder, write_model
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import DTYPES, ModelSpec, Quantization
from evaluation.rendering import IGNORE, Example, Unrenderable
from evaluation.tokenizer import load_tokenizer
from finetune.console import Reporter
from finetune.disk_space import require_space, weights_bytes
from finetune.door_conversations import door_conversations
from finetune.doors import ANSWER, as_the_base_speaks, compare_tokenizers
from finetune.errors import DataError, ProofFailed
from finetune.merge_records import MERGE_FILE, DoorProof, MergeProof
from finetune.merged_files import model_folder
from finetune.merging_proof import Probe, agreement, answer_logits, build_probe, largest_difference, mean_kl
from finetune.merging_tokenizer import copy_tokenizer, stated_stops

PROOF_FILE = "export.json"
CONVERSATIONS = 32
"""Conversations that become the same tokens; the predictions of the first of them are compared."""

Bits = Literal["nf4", "int8"]
LARGEST_KL: dict[Bits, float] = {"nf4": 3.0, "int8": 0.5}
"""Nats; it tells wrong weights, not bad ones. SmolLM2-135M, which rounding hurts most, has 0.4 in NF4, 0.03 in int8."""


class QuantizedProof(BaseModel):
    """export.json: what was compared, and how far the quantized model is from the one it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Bits
    model_sha256: str
    bytes_before: int
    bytes: int
    probe_tokens: int
    max_logit_difference_reloaded: float
    """Written and loaded again against quantized in memory: 0 where nothing is lost on the way."""
    mean_kl: float
    """Mean KL divergence of the quantized model's predictions from the model's, in nats."""
    agreement: float
    """Share of positions with the same most probable token."""
    doors: tuple[DoorProof, ...]
    sha256: str
    """Of the folder without this file."""


def export_quantized(model: Path, out: Path, kind: Bits) -> None:
    """Write a run's merged model, or any model folder, quantized by bitsandbytes, with its proof beside it.

    Raises:
        DataError: there is no such model.
        ProofFailed: what is loaded again is not what was quantized; nothing is written.
    """
    folder = model_folder(model)
    if out.exists():
        raise DataError("there is something there already", where=str(out), hint="name another folder")
    _refuse_its_own_grid(folder, kind)
    dtype, reporter = _dtype_of(folder), Reporter()
    require_space(out.parent, weights_bytes(folder, "bfloat16"), "the quantized model")
    with staged_folder(out) as staging, reporter.bar(f"quantize to {kind}, load again, compare", 3) as advance:
        whole = load_language_model(ModelSpec(folder, dtype=dtype))
        probe = _build_probe(whole)
        expected = answer_logits(whole, probe)
        del whole
        advance(1)
        quantized = load_language_model(ModelSpec(folder, quantization=Quantization(kind), dtype=dtype))
        in_memory = answer_logits(quantized, probe)
        _write(quantized, folder, staging)
        del quantized
        advance(1)
        loaded = load_language_model(ModelSpec(staging, dtype=dtype))
        found = answer_logits(loaded, probe)
        proof = QuantizedProof(
            kind=kind,
            model_sha256=sha256_of_folder(folder),
            bytes_before=_size(folder),
            bytes=_size(staging),
            probe_tokens=probe.tokens,
            max_logit_difference_reloaded=largest_difference(in_memory, found),
            mean_kl=mean_kl(expected, found),
            agreement=agreement(expected, found),
            doors=compare_tokenizers(
                f"{kind}, plain transformers", load_tokenizer(folder), load_tokenizer(staging), CONVERSATIONS
            ),
            sha256=sha256_of_folder(staging),
        )
        _check(proof, str(out))
        write_model(staging / PROOF_FILE, proof)
        advance(1)
    reporter.say(
        f"{out}: {proof.bytes / 2**20:,.0f} of {proof.bytes_before / 2**20:,.0f} MiB, "
        f"KL {proof.mean_kl:.2g} nats, {proof.agreement:.1%} agreement on {proof.probe_tokens} tokens"
    )
    reporter.say(f"  score it with `evaluation.contenders: [base, adapter, merged, merged_{kind}]` in the recipe")


def _refuse_its_own_grid(folder: Path, kind: Bits) -> None:
    """Refuse to round a merge to the very grid that its base was dequantized from: the adapter would be gone."""
    try:
        onto = MergeProof.model_validate_json((folder / MERGE_FILE).read_bytes()).onto
    except (FileNotFoundError, ValidationError):
        return  # not a run's
    if kind == "nf4" and onto == "dequantized":
        raise DataError(
            "it was folded into weights that were dequantized from NF4, and in NF4 again it is the base (docs/log.md)",
            where=str(folder),
            hint="merge with `merge.onto: full_precision` first, or use --quantize int8",
        )


def _check(proof: QuantizedProof, where: str) -> None:
    if not proof.max_logit_difference_reloaded == 0.0:  # so that what is no number is refused, too
        raise ProofFailed(
            f"loaded again, its logits differ by {proof.max_logit_difference_reloaded:.1e} from those before saving",
            where=where,
        )
    limit = LARGEST_KL[proof.kind]
    if not proof.mean_kl <= limit:
        raise ProofFailed(
            f"quantized, it predicts otherwise: KL {proof.mean_kl:.1e} nats, the limit is {limit:g}",
            where=where,
            hint="look at the merged model: does it answer? or take int8, or full precision",
        )


def _build_probe(model: LanguageModel) -> Probe:
    """Return prompts with all their tokens labelled but the first: what is compared is every prediction."""
    examples = []
    for conversation in as_the_base_speaks(model.renderer, door_conversations(CONVERSATIONS)):
        try:
            whole = conversation.model_copy(update={"messages": (*conversation.messages, ANSWER)})
            ids = model.renderer.example(whole, "final_assistant").input_ids
        except Unrenderable:
            continue
        examples.append(Example(ids, (IGNORE, *ids[1:])))
    return build_probe(examples)


def _dtype_of(folder: Path) -> str:
    """Return the type that the weights are stored in, in which what is not quantized stays."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = str(config.get("dtype") or config.get("torch_dtype"))
    if "quantization_config" in config:
        raise DataError("it is quantized already", where=str(folder), hint="name the merged model in full precision")
    if named not in DTYPES:
        raise DataError(f"its weights are of type {named}", where=str(folder), hint=f"accepted: {', '.join(DTYPES)}")
    return named


def _write(model: LanguageModel, source: Path, folder: Path) -> None:
    causal_lm = model.causal_lm
    causal_lm.config._name_or_path = ""  # transformers writes it, and it is a local path
    if causal_lm.generation_config is not None:
        stops = {*stated_stops(source), *model.renderer.stop_ids()}
        causal_lm.generation_config.eos_token_id = sorted(stops)
    causal_lm.save_pretrained(str(folder))
    copy_tokenizer(source, folder)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
