"""The commands that serve a run with vLLM or SGLang, printed after checking what their LoRA loaders can.

Both are checked against their sources, since they load more than they can serve: an adapter whose ranks or alphas
differ between modules is served without an error, and with the wrong strength.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from evaluation.screen import PrintableConsole
from evaluation.tokenizer import load_tokenizer
from finetune.adapter_commands import find_base
from finetune.base_files import open_base
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.exporting_adapter import adapter_folder
from finetune.merged_files import check_merged_files
from finetune.merging_shards import check_fits
from finetune.merging_tokenizer import stated_stops, trained_stops
from finetune.peft_config import CONFIG_FILE
from finetune.peft_weights import EMBEDDING, HEAD, LowRank, PeftFolder, open_peft_folder
from finetune.serving_choice import VLLM_RANKS

Server = Literal["vllm", "sglang"]

_NAMES = {"vllm": "vLLM", "sglang": "SGLang"}
_PLAIN = "make a plain LoRA of the same change: finetune adapter combine {folder} --out plain"
_MERGE = "serve the whole model: finetune adapter merge {folder} --out merged, or a run's with --merged"


def print_launch_line(named: Path, server: Server, merged: bool, base: str | None, cache: Path) -> None:
    """Print the command that serves a run, an adapter or a model.

    Raises:
        DataError: there is nothing to serve, or the server cannot serve the adapter, and what to do.
    """
    folder = adapter_folder(named)
    if merged or not (folder / CONFIG_FILE).exists():
        words = whole_model_words(_model_folder(named, merged), server)
    else:
        adapter = open_peft_folder(folder)
        found = find_base(adapter, base, cache, Reporter())
        check_servable(adapter, server)
        check_fits(found, adapter)
        check_stops(adapter, found.folder, server)
        words = adapter_words(adapter, found.folder, named.resolve().name, server)
    PrintableConsole(soft_wrap=True, highlight=False).print(shlex.join(words), markup=False)


def whole_model_words(folder: Path, server: Server) -> list[str]:
    """Spell out the command that serves a model folder."""
    name = folder.parent.resolve().name if folder.name == "merged" else folder.resolve().name
    match server:
        case "vllm":
            return ["vllm", "serve", str(folder), "--served-model-name", name]
        case "sglang":
            return [*_SGLANG, str(folder), "--served-model-name", name]


def adapter_words(adapter: PeftFolder, base: Path, name: str, server: Server) -> list[str]:
    """Spell out the command that serves an adapter on its base, under a name that requests ask for."""
    rank, served = max(map(adapter.config.rank, adapter.modules)), f"{name}={adapter.folder}"
    template = adapter.folder / "chat_template.jinja"
    # Servers take the base's template unless they are told, and the adapter may have been trained with another.
    trained_with = ["--chat-template", str(template)] if template.exists() else []
    match server:
        case "vllm":
            most = next(allowed for allowed in VLLM_RANKS if allowed >= rank)
            lora = ["--enable-lora", "--lora-modules", served, "--max-lora-rank", str(most)]
            return ["vllm", "serve", str(base), *lora, *trained_with]
        case "sglang":
            # https://docs.sglang.io/advanced_features/lora.html
            lora = ["--enable-lora", "--lora-paths", served, "--max-lora-rank", str(rank)]
            return [*_SGLANG, str(base), *lora, *trained_with]


_SGLANG = ["python", "-m", "sglang.launch_server", "--model-path"]


def check_servable(adapter: PeftFolder, server: Server) -> None:
    """Check that a server can serve an adapter as it was trained.

    Raises:
        DataError: it cannot, why not, and what to do.
    """
    for reason, hint in _limits(adapter, server):
        what = f"{_NAMES[server]} cannot serve it: {reason}"
        raise DataError(what, where=str(adapter.folder), hint=hint.format(folder=adapter.folder))


def check_stops(adapter: PeftFolder, base: Path, server: Server) -> None:
    """Check that a server, which reads the base's settings and tokenizer, stops where training ended answers.

    Raises:
        DataError: it would write on, and what to do.
    """
    # vLLM's --override-generation-config does not reach the stops: SamplingParams.update_from_generation_config is
    # given what ModelConfig.try_get_generation_config reads from the file, and only sampling is overridden.
    own = adapter.folder if (adapter.folder / "tokenizer.json").exists() else base
    missing = sorted({*trained_stops(own)} - {*stated_stops(base), load_tokenizer(base).eos_token_id})
    if missing:
        what = (
            f"{_NAMES[server]} would not stop where its answers end: the settings of {base.name} do not name "
            f"token {', '.join(map(str, missing))}"
        )
        raise DataError(what, where=str(adapter.folder), hint=_MERGE.format(folder=adapter.folder))


def _limits(adapter: PeftFolder, server: Server) -> Iterator[tuple[str, str]]:
    """Yield every reason why not, each with what to do."""
    config = adapter.config
    # vLLM: https://github.com/vllm-project/vllm/blob/main/vllm/lora/peft_helper.py refuses DoRA and modules_to_save.
    # SGLang: https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/lora/lora.py reads A and B only.
    if config.use_dora:
        yield "DoRA is not computed", _MERGE
    if config.residual:
        yield f"{config.kind} subtracts its start from the base, which is served as it is", _MERGE
    for module in adapter.modules:
        change = adapter.change(module)
        if not isinstance(change, LowRank) or change.own is not None:
            yield f"{module} was trained whole or in single rows, and only A and B are loaded", _MERGE
        if module in (EMBEDDING, HEAD):
            yield f"a LoRA on {module} is left out by some versions", _MERGE
    # Both read `r` and `lora_alpha` alone; rank_pattern and alpha_pattern are no fields of vLLM's PEFTHelper, and
    # SGLang's scaling is one number for the adapter.
    if len({config.rank(module) for module in adapter.modules}) > 1:
        yield "its modules differ in rank, and one rank is taken for all", _MERGE
    if len({config.scaling(module) for module in adapter.modules}) > 1:
        yield "its modules differ in alpha, and one alpha is taken for all", _PLAIN
    if config.rank(adapter.modules[0]) != config.r or config.scaling(adapter.modules[0]) != config.scaling(""):
        yield "rank and alpha in its settings are not those of its modules", _PLAIN
    yield from _limits_of_vllm(adapter) if server == "vllm" else _limits_of_sglang(adapter)


def _limits_of_vllm(adapter: PeftFolder) -> Iterator[tuple[str, str]]:
    rank = max(map(adapter.config.rank, adapter.modules))
    if rank > VLLM_RANKS[-1]:
        yield f"its rank is {rank}, --max-lora-rank goes up to {VLLM_RANKS[-1]}", _MERGE


def _limits_of_sglang(adapter: PeftFolder) -> Iterator[tuple[str, str]]:
    # https://github.com/sgl-project/sglang/issues/40835, open in September 2026; vLLM does scale by alpha / √rank.
    if adapter.config.use_rslora:
        yield "rsLoRA is scaled by alpha / rank there, which is √rank times too weak", _PLAIN


def _model_folder(named: Path, merged: bool) -> Path:
    folder = named / "merged" if merged or (named / "merged").is_dir() else named
    check_merged_files(folder)
    open_base(folder)
    return folder
