"""Bases: what is accepted, what is refused and with which way out; and a tiny GGUF file, converted."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_model import write_tiny_base
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.files import sha256_of_file
from finetune.bases import ResolvedBase, hash_model_folder, hash_published_base, resolve_base
from finetune.cache import file_entry
from finetune.chat_templates import load_chat_template
from finetune.errors import DataError
from finetune.gguf import convert_gguf
from finetune.recipe import Base

TEMPLATE = "{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"


def base(model: str, **more: str) -> Base:
    """Describe a base."""
    return Base.model_validate({"model": model, **more})


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Return a folder with the files of a LLaMA model, whose contents play no part here."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def refusal(folder: Path, **more: str) -> str:
    """Return what is said about a folder that is not accepted."""
    with pytest.raises(DataError) as caught:
        resolve_base(base(str(folder), **more), folder.parent / "cache", print)
    return str(caught.value)


def test_a_local_folder_is_taken_as_it_is(model_folder: Path, tmp_path: Path) -> None:
    resolved = resolve_base(base(str(model_folder)), tmp_path / "cache", print)
    assert (resolved.folder, resolved.identity) == (model_folder, str(model_folder))
    pinned = resolve_base(base(str(model_folder), sha256=resolved.sha256), tmp_path / "cache", print)
    assert pinned == resolved


def test_the_hash_covers_what_the_model_is_and_nothing_beside_it(model_folder: Path) -> None:
    before = hash_model_folder(model_folder)
    (model_folder / "README.md").write_text("changed")
    assert hash_model_folder(model_folder) == before
    (model_folder / "chat_template.jinja").write_text("changed")
    assert hash_model_folder(model_folder) != before


def test_another_content_than_stated_is_refused(model_folder: Path) -> None:
    assert "expected " + "0" * 64 in refusal(model_folder, sha256="0" * 64)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "qwen2"}', "accepted: llama"),
        ("{}", "its architecture is None"),
        ("[]", "does not hold an object"),
        ("{", "is not JSON"),
        ('{"model_type": "llama", "auto_map": {"AutoModel": "modeling.Model"}}', "trust_remote_code"),
        ('{"model_type": "llama", "quantization_config": {}}', "name the full-precision model"),
    ],
)
def test_a_config_that_is_not_accepted_is_refused(config: str, message: str, model_folder: Path) -> None:
    (model_folder / "config.json").write_text(config)
    assert message in refusal(model_folder)


def test_a_tokenizer_with_code_of_its_own_is_refused(model_folder: Path) -> None:
    (model_folder / "tokenizer_config.json").write_text('{"auto_map": {}}')
    assert "auto_map" in refusal(model_folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_missing_part_is_named(name: str, message: str, model_folder: Path) -> None:
    (model_folder / name).unlink()
    assert message in refusal(model_folder)


def test_pickled_weights_are_refused_with_the_way_out(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    said = refusal(model_folder)
    assert "pickled (pytorch_model.bin)" in said
    assert "save_pretrained" in said


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "model-2.safetensors"}}, "'model-2.safetensors', which is not there"),
        ({"weight_map": {"a": "../model/model.safetensors"}}, "which is no file of safetensors in this folder"),
        ({"weight_map": []}, "not an object"),
    ],
)
def test_an_index_may_only_name_files_beside_it(index: dict[str, object], message: str, model_folder: Path) -> None:
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refusal(model_folder)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (base("no such thing"), "a hub id"),
        (base("absent.gguf"), "no such file"),
        (base("absent.gguf", revision="main"), "belongs to hub models"),
        (base("pypi:shelf==1.0/model.gguf"), "needs its sha256"),
        (base("pypi:shelf==1.0/model.safetensors", sha256="0" * 64), "only GGUF"),
    ],
)
def test_what_a_kind_of_base_needs_is_asked_for(named: Base, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        resolve_base(named, tmp_path, print)


def write_gguf(path: Path, architecture: str = "llama") -> dict[str, np.ndarray]:
    """Write a one-layer LLaMA with a byte-level tokenizer; return the tensors written."""
    width, inner, heads = 32, 64, 4
    tokens = ["<s>", "</s>", "ab", *sorted(ByteLevel.alphabet())]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    shapes = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width)}
    shapes |= {"attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width)}
    shapes |= {"ffn_down": (width, inner), "attn_norm": (width,), "ffn_norm": (width,)}
    named = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"token_embd.weight": (len(tokens), width), "output_norm.weight": (width,)}
    random = np.random.default_rng(0)
    tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in named.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_is_converted_once_without_loss(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, cache, said = tmp_path / "tiny.gguf", tmp_path / "cache", []
    tensors = write_gguf(file)
    resolved = resolve_base(base(str(file)), cache, said.append)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    saved = load_file(resolved.folder / "model.safetensors")
    assert (saved["model.embed_tokens.weight"] == tensors["token_embd.weight"]).all()
    assert (saved["model.layers.0.mlp.down_proj.weight"] == tensors["blk.0.ffn_down.weight"]).all()
    config = json.loads((resolved.folder / "config.json").read_text())
    assert not {"quantization_config", "_name_or_path"} & set(config)
    assert json.loads((resolved.folder / "generation_config.json").read_text())["eos_token_id"] == 1
    tokenizer = AutoTokenizer.from_pretrained(resolved.folder)
    assert tokenizer.chat_template == TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(resolved.folder)
    assert model.dtype == torch.float32
    assert str(tmp_path) not in "".join(path.read_text() for path in resolved.folder.glob("*.json"))
    stated = base(str(file), sha256=sha256_of_file(file))
    assert resolve_base(stated, cache, said.append) == resolved
    assert len(said) == 1


def test_a_gguf_file_from_a_wheel_is_converted_from_the_cache(tmp_path: Path) -> None:
    file, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_gguf(file)
    sha256 = sha256_of_file(file)
    entry = file_entry(cache, sha256, "tiny.gguf")
    entry.parent.mkdir(parents=True)
    file.rename(entry)
    name = "pypi:shelf==1.0/shelf/tiny.gguf"
    resolved = resolve_base(base(name, sha256=sha256), cache, print)
    assert resolved.identity == name
    assert sha256 in resolved.origin


def test_a_gguf_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert "expected" in refusal(tmp_path / "tiny.gguf", sha256="0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x80\x04pickle", "does not begin with 'GGUF'"), (b"GGUF\x03\x00\x00\x00", "cannot be read as GGUF")],
)
def test_a_file_that_is_not_gguf_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        convert_gguf(file, "0" * 64, tmp_path / "cache", print)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_gguf_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, architecture="qwen2")
    with pytest.raises(DataError, match="qwen2"):
        convert_gguf(file, "0" * 64, tmp_path / "cache", print)


def test_a_named_chat_template_takes_the_place_of_the_bases_own(tmp_path: Path) -> None:
    plain, cache = write_tiny_base(tmp_path / "model"), tmp_path / "cache"
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "old"}))
    found = resolve_base(base(str(plain)), cache, print)
    named = resolve_base(base(str(plain), chat_template="chatml"), cache, print)
    assert AutoTokenizer.from_pretrained(named.folder).chat_template == load_chat_template("chatml")
    assert "chat_template" not in json.loads((named.folder / "tokenizer_config.json").read_text())
    assert (named.identity, named.sha256 != found.sha256) == (found.identity, True)
    assert named.sha256 == hash_model_folder(named.folder)
    assert (named.folder / "model.safetensors").samefile(plain / "model.safetensors")
    assert resolve_base(base(str(plain)), cache, print) == found
    assert str(tmp_path) not in named.origin


def test_another_template_or_base_is_another_folder(tmp_path: Path) -> None:
    plain, cache, file = write_tiny_base(tmp_path / "model"), tmp_path / "cache", tmp_path / "mine.jinja"

    def resolved(name: str) -> ResolvedBase:
        return resolve_base(base(str(plain), chat_template=name), cache, print)

    file.write_text(TEMPLATE)
    first = resolved(str(file))
    assert resolved(str(file)) == first
    file.write_text(TEMPLATE + " ")
    second = resolved(str(file))
    (plain / "config.json").write_text((plain / "config.json").read_text() + " ")
    third = resolved(str(file))
    assert len({first.folder, second.folder, third.folder, resolved("alpaca").folder}) == 4
    assert len({first.sha256, second.sha256, third.sha256}) == 3


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "model.safetensors"])
def test_a_damaged_folder_with_a_template_is_made_again(name: str, tmp_path: Path) -> None:
    plain, cache = write_tiny_base(tmp_path / "model"), tmp_path / "cache"
    named = base(str(plain), chat_template="chatml")
    made = resolve_base(named, cache, print)
    (made.folder / name).unlink()
    (made.folder / name).write_text("damaged")
    assert resolve_base(named, cache, print) == made
    assert hash_model_folder(made.folder) == made.sha256


def test_files_are_copied_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no links here")

    plain, cache = write_tiny_base(tmp_path / "model"), tmp_path / "cache"
    monkeypatch.setattr("os.link", fails)
    made = resolve_base(base(str(plain), chat_template="chatml"), cache, print)
    assert not (made.folder / "model.safetensors").samefile(plain / "model.safetensors")
    assert made.sha256 == hash_model_folder(made.folder)
    assert resolve_base(base(str(plain), chat_template="chatml"), cache, print) == made


def test_a_template_whose_control_tokens_the_base_lacks_is_refused(tmp_path: Path) -> None:
    plain = write_tiny_base(tmp_path / "model")
    with pytest.raises(DataError, match="end_header_id") as caught:
        resolve_base(base(str(plain), chat_template="llama3"), tmp_path / "cache", print)
    assert "alpaca, chatml" in str(caught.value)
    with pytest.raises(DataError, match="did you mean 'chatml'"):
        resolve_base(base(str(plain), chat_template="chatlm"), tmp_path / "cache", print)


def test_the_published_hash_is_that_of_the_base_whatever_template_it_has(tmp_path: Path) -> None:
    plain, cache = write_tiny_base(tmp_path / "model"), tmp_path / "cache"
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "old"}))
    found = hash_published_base(plain)
    named = resolve_base(base(str(plain), chat_template="chatml"), cache, print)
    assert hash_published_base(named.folder) == found != named.sha256
    (plain / "README.md").write_text("changes nothing")
    (plain / "chat_template.jinja").write_text("new")
    assert hash_published_base(plain) == found
    for name in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        before = (plain / name).read_text()
        (plain / name).write_text(json.dumps(json.loads(before) | {"changed": 1}))
        assert hash_published_base(plain) != found
        (plain / name).write_text(before)
    assert hash_published_base(plain) == found
