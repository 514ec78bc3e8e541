"""Each assumption on a library is broken by a fake, and the error names library, version and assumption."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import accelerate
import bitsandbytes.nn.modules as bitsandbytes_modules
import pytest
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraModel
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import CallbackHandler
from trl.trainer.sft_trainer import SFTTrainer

from finetune import upstream_models, upstream_training
from finetune.checking import check_recipes
from finetune.errors import MachineError
from finetune.upstream import Contract, broken_contracts
from finetune.upstream_contracts import all_contracts, check_contracts

Fake = Callable[[pytest.MonkeyPatch], None]


def counts_every_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trainer, "_get_num_items_in_batch", lambda self, batches, device: torch.tensor(8))


def divides_again(patch: pytest.MonkeyPatch) -> None:
    step = Trainer.training_step

    def divided(self: Any, *given: Any) -> Any:
        self.model_accepts_loss_kwargs = False
        return step(self, *given)

    patch.setattr(Trainer, "training_step", divided)


def forgets_the_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SFTTrainer, "compute_loss", lambda self, model, inputs, return_outputs=False: None)


def calls_no_hook(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CallbackHandler, "on_pre_optimizer_step", lambda self, args, state, control: control)


def loads_its_own_batches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SFTTrainer, "get_train_dataloader", lambda self: None, raising=False)


def counts_gpus_elsewhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(transformers.TrainingArguments, "n_gpu", property(lambda self: torch.cuda.device_count()))


def patches_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upstream_training, "add_fused_lm_head", lambda model, outputs: None)


def prepares_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SFTTrainer, "__init__", lambda self: None)


def counts_no_processes(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(accelerate.Accelerator, "num_processes")


def normalizes_in_bf16(patch: pytest.MonkeyPatch) -> None:
    attend = upstream_training.flash_attention_for_cpu

    def rounded(*given: Any, **how: Any) -> Any:
        mean, normalizer = attend(*given, **how)
        return mean, normalizer.bfloat16()

    patch.setattr(upstream_training, "flash_attention_for_cpu", rounded)


def ignores_positions(patch: pytest.MonkeyPatch) -> None:
    forward = LlamaModel.forward
    patch.setattr(LlamaModel, "forward", lambda self, position_ids=None, **how: forward(self, **how))


def ignores_the_mask(patch: pytest.MonkeyPatch) -> None:
    def backwards(self: Any, input_ids: Any, attention_mask: Any = None, **how: Any) -> Any:
        return forward(self, input_ids if attention_mask is None else input_ids.flip(1), **how)

    forward = LlamaModel.forward
    patch.setattr(LlamaModel, "forward", backwards)


def has_another_head(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda self: torch.nn.Linear(16, 16))


def names_tensors_otherwise(patch: pytest.MonkeyPatch) -> None:
    found = upstream_models.get_peft_model_state_dict

    def renamed(model: Any, **how: Any) -> dict[str, Any]:
        return {name.removeprefix("base_model."): value for name, value in found(model, **how).items()}

    patch.setattr(upstream_models, "get_peft_model_state_dict", renamed)


def begins_at_random(patch: pytest.MonkeyPatch) -> None:
    adapted = upstream_models.get_peft_model

    def filled(model: Any, config: Any) -> Any:
        made = adapted(model, config)
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(1.0)
        return made

    patch.setattr(upstream_models, "get_peft_model", filled)


def saves_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PeftModel, "save_pretrained", lambda self, folder: None)


def folds_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LoraModel, "merge_and_unload", lambda self, safe_merge=False: self.unload())


def renames_the_switch(patch: pytest.MonkeyPatch) -> None:
    start = bitsandbytes_modules.Linear4bit.__init__

    def renamed(self: Any, *given: Any, **how: Any) -> None:
        start(self, *given, **how)
        del self.support_avx512bf16_for_cpu

    patch.setattr(bitsandbytes_modules.Linear4bit, "__init__", renamed)


def dequantizes_transposed(patch: pytest.MonkeyPatch) -> None:
    found = upstream_models.dequantize_4bit
    patch.setattr(upstream_models, "dequantize_4bit", lambda data, state: found(data, state).T)


def returns_a_mapping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PreTrainedTokenizerBase, "apply_chat_template", lambda self, chat, **how: {"input_ids": [1, 2, 3]})


def counts_bytes(patch: pytest.MonkeyPatch) -> None:
    class Counting:
        def encode_batch(self, texts: list[str], **how: object) -> list[Any]:
            return [type("Encoding", (), {"ids": [2, 3], "offsets": [(0, 2), (3, 4)]})()]

    backend = property(lambda self: Counting())
    patch.setattr(transformers.PreTrainedTokenizerFast, "backend_tokenizer", backend)


def has_other_ids_without_places(patch: pytest.MonkeyPatch) -> None:
    class Quick:
        def encode_batch_fast(self, texts: list[str], **how: object) -> list[Any]:
            return [type("Encoding", (), {"ids": [3, 2]})()]

    patch.setattr(transformers.PreTrainedTokenizerFast, "backend_tokenizer", property(lambda self: Quick()))


def reads_no_llama(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upstream_models, "GGUF_SUPPORTED_ARCHITECTURES", ["qwen2"])


def writes_pickles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upstream_models, "SAFE_WEIGHTS_NAME", "pytorch_model.bin")


def writes_adapters_elsewhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upstream_models, "SAFETENSORS_WEIGHTS_NAME", "adapter.safetensors")


def spells_types_out(patch: pytest.MonkeyPatch) -> None:
    saved = upstream_models.save
    patch.setattr(upstream_models, "save", lambda tensors: saved(tensors).replace(b'"dtype":"BF16"', b'"dtype":"BF_6"'))


def downloads_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upstream_models, "snapshot_download", lambda repo, revision=None: None)


FAKES: dict[str, tuple[Fake, str]] = {
    "tokens_of_the_step": (counts_every_token, "transformers"),
    "divided_once": (divides_again, "transformers"),
    "compute_loss_signature": (forgets_the_tokens, "trl"),
    "update_hook": (calls_no_hook, "transformers"),
    "batch_hook": (loads_its_own_batches, "trl"),
    "gpu_count": (counts_gpus_elsewhere, "transformers"),
    "head_patch": (patches_nothing, "trl"),
    "prepared_rows": (prepares_rows, "trl"),
    "attention_normalizer": (normalizes_in_bf16, "torch"),
    "process_count": (counts_no_processes, "accelerate"),
    "packed_mask": (ignores_positions, "transformers"),
    "padding_mask": (ignores_the_mask, "transformers"),
    "llama_parts": (has_another_head, "transformers"),
    "adapter_keys": (names_tensors_otherwise, "peft"),
    "adapter_start": (begins_at_random, "peft"),
    "saved_embeddings": (saves_everything, "peft"),
    "folding": (folds_nothing, "peft"),
    "no_repacking": (renames_the_switch, "bitsandbytes"),
    "dequantizing": (dequantizes_transposed, "bitsandbytes"),
    "chat_ids": (returns_a_mapping, "transformers"),
    "offsets": (counts_bytes, "tokenizers"),
    "fast_ids": (has_other_ids_without_places, "tokenizers"),
    "gguf": (reads_no_llama, "transformers"),
    "weight_files": (writes_pickles, "transformers"),
    "adapter_files": (writes_adapters_elsewhere, "peft"),
    "dtype_names": (spells_types_out, "safetensors"),
    "downloads": (downloads_everything, "huggingface_hub"),
}


def test_every_contract_has_a_fake_that_breaks_it() -> None:
    names = [contract.name for contract in all_contracts()]
    assert len(names) == len(set(names))
    assert set(names) == set(FAKES)


def test_every_contract_holds_with_the_installed_libraries() -> None:
    check_contracts()


@pytest.mark.parametrize("name", FAKES)
def test_a_break_names_library_version_and_assumption(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, library = FAKES[name]
    contract = next(contract for contract in all_contracts() if contract.name == name)
    fake(monkeypatch)
    broken = {found.contract.name for found in broken_contracts(all_contracts())}
    assert name in broken
    assert contract.library == library
    with pytest.raises(MachineError) as caught:
        check_contracts()
    assert f"{library} {version(library)} breaks an assumption: {contract.expects}" in caught.value.what
    assert re.search(rf"'{library}[<>=]", caught.value.hint), "with the versions that were tested"


def test_what_a_probe_raises_is_told() -> None:
    def gone() -> bool:
        raise AttributeError("module has no attribute 'x'")

    [broken] = broken_contracts([Contract("gone", "torch", "there is an x", gone)])
    assert str(broken).endswith("there is an x (AttributeError: module has no attribute 'x')")


def test_probing_is_quick_and_leaves_the_generators_alone() -> None:
    check_contracts()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    began = time.process_time()
    check_contracts()
    assert time.process_time() - began < 1.0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_check_here_tells_of_a_break(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reads_no_llama(monkeypatch)
    assert check_recipes(["icd10-quickstart"], [], here=True) == 2
    assert "breaks an assumption" in " ".join(capsys.readouterr().out.split())
    assert check_recipes(["icd10-quickstart"], [], here=False) == 0
