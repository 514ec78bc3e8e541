"""adapter_config.json of peft: what of it decides the weights, and what makes an adapter one that cannot be folded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from finetune.errors import DataError

CONFIG_FILE = "adapter_config.json"

_WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "layers_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "qalora_group_size",
    }
)
"""Settings of training, or of which layers have an adapter; the tensors say that themselves."""

_REASONS = {
    "fan_in_fan_out": "its weights lie transposed, which no LLaMA layer has",
    "layer_replication": "it repeats layers of the base, which folding would mix up",
    "alora_invocation_tokens": "it acts after certain tokens only, which no folded weight can do",
    "lora_bias": "it has biases, for which a LLaMA layer has no room",
    "target_parameters": "it adapts bare parameters of mixture-of-experts layers",
    "arrow_config": "it routes between several adapters by input, which no folded weight can do",
    "use_qalora": "it is bound to the groups of a quantized base",
    "kasa_config": "its method changes the base when it starts",
    "corda_config": "its base is what a preprocessing left, which is not in the folder",
    "velora_config": "its method is not known here",
    "megatron_config": "it is for Megatron's layers",
}
_INITIAL = re.compile(r"gaussian|eva|pissa|olora")
"""What `init_lora_weights` may be, beside a boolean; of these, `pissa` and `olora` change the base."""
_PATTERN = re.compile(r"\^?(\w|-|\\?\.|\\d)+\$?", re.ASCII)
"""Keys of `rank_pattern` and `alpha_pattern`, which peft takes for regular expressions: names, with dots and digits."""
_LONGEST_PATTERN = 200


class PeftConfig(BaseModel):
    """The settings that decide what an adapter adds to a weight."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    peft_type: str
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, float] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    modules_to_save: tuple[str, ...] | None = None
    trainable_token_indices: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None
    ensure_weight_tying: bool = False

    def scaling(self, module: str) -> float:
        """Return the factor of B·A for a module, alpha / rank, or alpha / √rank for rsLoRA.

        Formulas: https://arxiv.org/abs/2106.09685, section 4.1, and https://arxiv.org/abs/2312.03732.
        """
        rank, alpha = self.rank(module), _matched(self.alpha_pattern, module, self.lora_alpha)
        return float(alpha) / (rank**0.5 if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        """Return the inner dimension of the two factors of a module."""
        return int(_matched(self.rank_pattern, module, self.r))

    def adapts(self, module: str) -> bool:
        """Say whether the settings name this module by its last words; patterns and choices of layers are not read."""
        targets = self.target_modules
        if not isinstance(targets, tuple) or self.exclude_modules or self.layers_to_transform is not None:
            return False
        return any(module == name or module.endswith(f".{name}") for name in targets)

    @property
    def kind(self) -> str:
        """Name the variant as people do."""
        start = {"pissa": "PiSSA", "olora": "OLoRA"}.get(self.residual or "")
        return start or ("DoRA" if self.use_dora else "rsLoRA" if self.use_rslora else "LoRA")

    @property
    def residual(self) -> Literal["pissa", "olora"] | None:
        """Name the start that subtracted its own product from the base, which is done again at every load."""
        start = self.init_lora_weights
        return start if start in ("pissa", "olora") else None  # type: ignore[return-value]


def load_peft_config(folder: Path, where: str) -> PeftConfig:
    """Read the settings of an adapter.

    Raises:
        DataError: there are none, they are damaged, or they name something that cannot be folded into weights, and why.
    """
    try:
        config = PeftConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except OSError as error:
        raise DataError(
            f"no {CONFIG_FILE} in this folder", where=where, hint="name a folder that peft wrote"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{CONFIG_FILE} cannot be read: {place}: {first['msg']}", where=where) from error
    if reason := _why_not(config):
        raise DataError(f"the adapter cannot be folded: {reason}", where=f"{where}/{CONFIG_FILE}")
    return config


def _why_not(config: PeftConfig) -> str | None:
    if config.peft_type != "LORA":
        return f"its kind is {config.peft_type}; accepted: LORA (with rsLoRA, DoRA, PiSSA, OLoRA)"
    if config.bias != "none":
        return f"bias: {config.bias!r}, for which a LLaMA layer has no room"
    for key in (*config.rank_pattern, *config.alpha_pattern):
        if len(key) > _LONGEST_PATTERN or not _PATTERN.fullmatch(key):
            return f"the pattern {key[:60]!r} is more than a name; names of modules are accepted"
    start = config.init_lora_weights
    if isinstance(start, str) and not _INITIAL.fullmatch(start):
        hint = "save it again with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        return f"init_lora_weights: {start!r} leaves a base that cannot be worked out again; {hint}"
    if config.residual and config.use_dora:
        return f"init_lora_weights: {start!r} together with use_dora"
    for name, value in (config.model_extra or {}).items():
        if name not in _WITHOUT_EFFECT and _acts(value):
            return f"{name}: {_REASONS.get(name, 'a setting that is not known here')}"
    return None


def _acts(value: JsonValue) -> bool:
    return value not in (None, False, {}, [], "")


def _matched(pattern: dict[str, float], module: str, otherwise: float) -> float:
    """Return the value of the first pattern that a module's name ends with, as peft does: whole parts of the name."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise
