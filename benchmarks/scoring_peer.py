"""One measured process of `benchmarks.scoring`: lm-eval's HFLM. Takes model, requests, type and batch size.

It runs in the environment of lm-eval and imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]


def main(folder: str, file: str, dtype: str, batch_size: str) -> None:
    """Score every option after every prompt, and print seconds and log-likelihoods."""
    requests = json.loads(Path(file).read_bytes())
    model = HFLM(pretrained=folder, dtype=dtype, device="cpu", batch_size=int(batch_size))
    asked = [
        # The texts are keys of its cache of requests, which is not in use; the ids are what is scored.
        ((f"prompt {i}", f"option {j}"), prompt, answer)
        for i, prompt in enumerate(requests["prompt_ids"])
        for j, answer in enumerate(requests["answer_ids"])
    ]
    began = time.perf_counter()
    found = [score for score, _ in model._loglikelihood_tokens(asked, disable_tqdm=True)]
    seconds = time.perf_counter() - began
    width = len(requests["answer_ids"])
    scores = [found[i : i + width] for i in range(0, len(found), width)]
    print(json.dumps({"seconds": seconds, "scores": scores}))


if __name__ == "__main__":
    main(*sys.argv[1:])
