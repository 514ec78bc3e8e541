"""One measured process of `benchmarks.scoring`: this project's scoring. Takes model, requests and type."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from evaluation.conversation import Conversation
from evaluation.inference import load_language_model
from evaluation.model import ModelSpec


def main(folder: str, file: str, dtype: str) -> None:
    """Score every option after every prompt, and print seconds and log-likelihoods."""
    requests = json.loads(Path(file).read_bytes())
    model = load_language_model(ModelSpec(Path(folder), dtype=dtype, device="cpu"))
    prompts = [Conversation.model_validate(prompt) for prompt in requests["prompts"]]
    began = time.perf_counter()
    scores = model.option_log_likelihoods(prompts, requests["options"])
    print(json.dumps({"seconds": time.perf_counter() - began, "scores": scores}))


if __name__ == "__main__":
    main(*sys.argv[1:])
