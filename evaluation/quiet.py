"""Keeps libraries from printing and from reporting home; what matters of their warnings is an error of ours."""

from __future__ import annotations

import logging
import os
import warnings

QUIET_LOGGERS = (
    "bitsandbytes",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "torch.distributed.elastic",
)


def quiet_libraries() -> None:
    """Silence libraries and switch off their telemetry; call it before they are imported.

    TRL reports every trainer that is made unless HF_HUB_DISABLE_TELEMETRY is set (trl/trainer/base_trainer.py, 1.16).
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|peft|trl|bitsandbytes")
