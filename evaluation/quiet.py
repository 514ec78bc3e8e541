"""Keeps libraries from printing and from reporting home; what matters of their warnings is an error of ours."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from evaluation.offline import stay_offline

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
    """Silence libraries; call it before they are imported. In a child of an offline process, stay offline."""
    stay_offline()
    report_nothing()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|peft|trl|bitsandbytes")


def report_nothing() -> None:
    """Switch off what libraries send home, and what they fetch and run unasked, also where they are imported already.

    TRL reports every trainer that is made (trl/trainer/base_trainer.py, 1.16). bitsandbytes fetches a compiled kernel
    from the hub when it is imported beside the package `kernels` (backends/cpu/ops.py, 0.50.2), and has no switch.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # The variable is read once, when huggingface_hub is imported.
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None: there is no such package
