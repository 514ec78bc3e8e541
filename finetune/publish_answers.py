"""What a published folder answers, by plain transformers and peft: nothing of ours stands between it and its user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from finetune.publish_manifest import ADAPTER_FOLDER, MERGED_FOLDER, Manifest, PublishedAnswer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def wrong_answers(folder: Path, manifest: Manifest, base: Path | None) -> list[str]:
    """Ask every question of publish.json again, greedily; returns a line for each answer that is another.

    `base` is needed where the folder holds an adapter.
    """
    own = folder / (ADAPTER_FOLDER if "adapter" in manifest.parts else MERGED_FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(own, local_files_only=True, trust_remote_code=False)
    model = _load(own, manifest, base)
    wrong = []
    for expected in manifest.answers:
        found = _answer(model, tokenizer, expected)
        if found != expected.answer.strip():
            wrong.append(f"asked {expected.messages[-1].content!r}: {expected.answer.strip()!r} became {found!r}")
    return wrong


def _load(own: Path, manifest: Manifest, base: Path | None) -> Any:
    quantization = None
    if manifest.quantization is not None:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=manifest.quantization.endswith("-double"),
            bnb_4bit_compute_dtype=DTYPES[manifest.dtype],
        )
    is_adapter = "adapter" in manifest.parts
    assert base is not None or not is_adapter, "an adapter needs its base"
    model = AutoModelForCausalLM.from_pretrained(
        base if is_adapter and base is not None else own,
        dtype=DTYPES[manifest.dtype],
        quantization_config=quantization if is_adapter else None,
        device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return (PeftModel.from_pretrained(model, str(own), local_files_only=True) if is_adapter else model).eval()


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, expected: PublishedAnswer) -> str:
    messages = [{"role": message.role, "content": message.content} for message in expected.messages]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    written = model.generate(
        **prompt, max_new_tokens=expected.tokens, do_sample=False, temperature=None, top_p=None, top_k=None
    )
    ids = written[0, prompt["input_ids"].shape[1] :].tolist()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((place for place, token in enumerate(ids) if token in special), len(ids))
    return str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)).strip()
