"""What a published folder answers, by plain transformers and peft: nothing of ours stands between it and its user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from evaluation.adapter_files import check_adapter_config
from evaluation.rendering import Renderer
from finetune.publish_manifest import ADAPTER_FOLDER, Manifest, PublishedAnswer, merged_folder


def wrong_answers(folder: Path, manifest: Manifest, base: Path | None) -> list[str]:
    """Ask every question of publish.json again, greedily, in fp32; returns a line for each answer that is another.

    An adapter is asked as its card says, with the tokens that end an answer, since its base's settings may name others;
    a merged model has to end its answers by its own settings. `base` is needed where the folder holds an adapter.
    """
    transformers_logging.disable_progress_bar()
    own = folder / (ADAPTER_FOLDER if "adapter" in manifest.parts else merged_folder(manifest))
    tokenizer = AutoTokenizer.from_pretrained(own, local_files_only=True, trust_remote_code=False)
    model = _load(own, base if "adapter" in manifest.parts else None)
    stops = Renderer(tokenizer).stop_ids()
    if "adapter" in manifest.parts:
        model.generation_config.eos_token_id = list(stops)
    wrong = []
    for expected in manifest.answers:
        ids = _continue(model, tokenizer, expected)
        found = _text(tokenizer, ids)
        asked = f"asked {expected.messages[-1].content!r}"
        if found != expected.answer.strip():
            wrong.append(f"{asked}: {expected.answer.strip()!r} became {found!r}")
        elif any(token in stops for token in ids[:-1]):
            wrong.append(
                f"{asked}: the answer ended and the model wrote on, its generation_config.json names other stops"
            )
    return wrong


def _load(own: Path, base: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        base or own,
        dtype=torch.float32,
        device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if base is not None:
        check_adapter_config(own)
    return (PeftModel.from_pretrained(model, str(own), local_files_only=True) if base is not None else model).eval()


@torch.inference_mode()
def _continue(model: Any, tokenizer: Any, expected: PublishedAnswer) -> list[int]:
    Renderer(tokenizer).chat_text(expected.messages, ask=True)  # within limits, which transformers has none of
    messages = [{"role": message.role, "content": message.content} for message in expected.messages]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    written = model.generate(
        **prompt, max_new_tokens=expected.tokens, do_sample=False, temperature=None, top_p=None, top_k=None
    )
    ids: list[int] = written[0, prompt["input_ids"].shape[1] :].tolist()
    return ids


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Decode up to the first control token."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((place for place, token in enumerate(ids) if token in special), len(ids))
    return str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)).strip()
