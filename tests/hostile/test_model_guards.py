"""The guards before transformers' and gguf's readers, at their limits."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from corpus_files import ARCHITECTURE, GGUF, _gguf, _pair, _string

from evaluation.errors import DataError
from evaluation.model_files import INDEX_FILE, check_model_files, read_json_object
from finetune.gguf_header import NEEDED, check_gguf_header
from finetune.weight_files import refuse_pickled_weights

STATED = ARCHITECTURE + b"".join(_pair(f"llama.{name}".encode(), 4, struct.pack("<I", 8)) for name in NEEDED)


def model(place: Path, index: object = None, **config: Any) -> Path:
    (place / "model.safetensors").touch()
    (place / "config.json").write_text(json.dumps({"model_type": "llama"} | config), encoding="utf-8")
    if index is not None:
        (place / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    return place


LARGEST = {
    "num_hidden_layers": 1_000,
    "hidden_size": 200_000,
    "intermediate_size": 2_000_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 1_000_000_000,
}


@pytest.mark.parametrize("name", LARGEST)
def test_sizes(name: str, tmp_path: Path) -> None:
    for value in (None, 1, LARGEST[name]):
        check_model_files(model(tmp_path, **{name: value}))
    for value in (0, -1, LARGEST[name] + 1, "many", 1.5, True, [1]):
        with pytest.raises(DataError, match=f"{name} is"):
            check_model_files(model(tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "no file of safetensors"),
        ({"weight_map": {"a": "/model.safetensors"}}, "no file of safetensors"),
        ({"weight_map": {"a": "x/model.safetensors"}}, "no file of safetensors"),
        ({"weight_map": {"a": "model.safetensors", "b": "x.bin"}}, "no file of safetensors"),
        ({"weight_map": {"a": 7}}, "no file of safetensors"),
        ({"weight_map": {"a": "other.safetensors"}}, "not there"),
        ({"weight_map": []}, "weight_map"),
        ({}, "weight_map"),
        ([], "does not hold an object"),
    ],
)
def test_indexes(index: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    with pytest.raises(DataError, match=said):
        check_model_files(model(tmp_path, index))


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    check_model_files(model(tmp_path, {"weight_map": {"a": "model.safetensors"}}))
    (tmp_path / "generation_config.json").write_text("{}", encoding="utf-8")
    check_model_files(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no \*\.safetensors weights"):
        check_model_files(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a":' + "[" * 100_000])
def test_damaged_json(name: str, text: str, tmp_path: Path) -> None:
    (model(tmp_path) / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=name):
        check_model_files(tmp_path)


def test_json_of_the_largest_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    monkeypatch.setattr("evaluation.model_files._LARGEST_JSON", 8)
    assert read_json_object(tmp_path / "a.json") == {"a": 1}


def test_json_without_end_or_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no a\.json"):
        read_json_object(tmp_path / "a.json")
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(100_000_001)
    with pytest.raises(DataError, match="larger than 100 MB"):
        read_json_object(tmp_path / "a.json")


def gguf(place: Path, data: bytes) -> None:
    (place / "x.gguf").write_bytes(data)
    check_gguf_header(place / "x.gguf")


@pytest.mark.parametrize("name", GGUF)
def test_hostile_headers(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        gguf(tmp_path, GGUF[name])


def _named(text: bytes, *numbers: int, kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(numbers)}Q", len(numbers), *numbers)
    return _string(text) + shape + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("pairs", "tensors"),
    [
        ((), ()),
        ((_pair(b"a", 9, struct.pack("<IQ", 4, 2) + b"\0" * 8),), ()),
        ((_pair(b"a", 9, struct.pack("<IQ", 8, 2) + _string(b"x") * 2),), ()),
        ((_pair(b"a", 8, _string(b"longer than a name may be" * 4000)),), (_named(b"t", 2),)),
        ((_pair(b"a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 3) + b"abc"),), ()),
        (
            tuple(
                _pair(b"k%d" % k, k, b"\0" * n)
                for k, n in ((0, 1), (1, 1), (2, 2), (3, 2), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8))
            ),
            (),
        ),
        ((), (_named(b"t", 2, 2, 2, 2),)),
        ((), (_named(b"t"),)),
    ],
)
def test_right_headers(pairs: tuple[bytes, ...], tensors: tuple[bytes, ...], tmp_path: Path) -> None:
    for version in (2, 3):
        gguf(
            tmp_path,
            _gguf(len(tensors), len(pairs) + 1 + len(NEEDED), STATED + b"".join(pairs) + b"".join(tensors), version),
        )


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([_pair(b"general.architecture", 8, _string(b"gpt2"))], "its architecture is 'gpt2'"),
        ([_pair(b"general.architecture", 4, b"\0" * 4)], "its architecture is ''"),
        ([], "its architecture is ''"),
        ([ARCHITECTURE, ARCHITECTURE], "'general.architecture' stands twice"),
        ([ARCHITECTURE, _pair(b"a", 0, b"1"), _pair(b"a", 0, b"1")], "'a' stands twice"),
    ],
)
def test_where_all_else_is_right_the_one_fault_is_named(pairs: list[bytes], said: str, tmp_path: Path) -> None:
    sizes = [_pair(f"llama.{name}".encode(), 4, b"\0" * 4) for name in NEEDED]
    with pytest.raises(DataError, match=said):
        gguf(tmp_path, _gguf(0, len(sizes) + len(pairs), b"".join([*sizes, *pairs])))


@pytest.mark.parametrize("version", [0, 1, 4])
def test_another_version_is_refused(version: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"GGUF of version {version}; accepted: 2, 3"):
        gguf(tmp_path, _gguf(0, 1 + len(NEEDED), STATED, version))
    with pytest.raises(DataError, match="does not begin with 'GGUF'"):
        gguf(tmp_path, b"GGML" + _gguf(0, 1 + len(NEEDED), STATED)[4:])


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (_named(b"t", 1, 1, 1, 1, 1), "5 dimensions"),
        (_named(b"t", 8_000), "8,000 numbers"),
        (_named(b"t", 1, offset=10_000), "at 10,000"),
        (_string(b"t" * 70_000), "70,000 bytes"),
    ],
)
def test_tensors_that_cannot_be(tensor: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        gguf(tmp_path, _gguf(1, 1 + len(NEEDED), STATED + tensor))


def sized(place: Path, numbers: int, offset: int) -> int:
    """Write a file with one tensor of so many numbers at an offset; return its size, which neither changes."""
    data = _gguf(1, 1 + len(NEEDED), STATED + _named(b"t", numbers, offset=offset))
    (place / "x.gguf").write_bytes(data)
    return len(data)


def test_a_tensor_may_end_where_the_file_does_and_no_further(tmp_path: Path) -> None:
    size = sized(tmp_path, 1, 0)
    for numbers, offset in ((8 * size, 0), (1, size), (8 * size, size)):
        assert sized(tmp_path, numbers, offset) == size
        check_gguf_header(tmp_path / "x.gguf")
    for numbers, offset in ((8 * size + 1, 0), (1, size + 1)):
        assert sized(tmp_path, numbers, offset) == size
        with pytest.raises(DataError, match=f"{numbers:,} numbers of kind 0 at {offset:,}"):
            check_gguf_header(tmp_path / "x.gguf")


def test_a_list_is_measured_by_the_file_first_and_by_what_is_left_of_it_then(tmp_path: Path) -> None:
    size = len(_gguf(0, 2 + len(NEEDED), STATED + _pair(b"a", 9, struct.pack("<IQ", 0, 0))))
    for count, said in ((size, f"a value of {size:,} bytes"), (size + 1, f"a list of {size + 1:,}")):
        with pytest.raises(DataError, match=said):
            gguf(tmp_path, _gguf(0, 2 + len(NEEDED), STATED + _pair(b"a", 9, struct.pack("<IQ", 0, count))))


def test_a_name_may_be_as_long_as_is_said(tmp_path: Path) -> None:
    longest = 65_535
    gguf(tmp_path, _gguf(1, 1 + len(NEEDED), STATED + _named(b"t" * longest, 1)))
    with pytest.raises(DataError, match="65,536 bytes"):
        gguf(tmp_path, _gguf(1, 1 + len(NEEDED), STATED + _named(b"t" * (longest + 1), 1)))


@pytest.mark.parametrize("missing", NEEDED)
def test_every_size_is_needed(missing: str, tmp_path: Path) -> None:
    kept = [name for name in NEEDED if name != missing]
    stated = ARCHITECTURE + b"".join(_pair(f"llama.{name}".encode(), 4, b"\0" * 4) for name in kept)
    with pytest.raises(DataError, match=f"does not state llama.{missing}"):
        gguf(tmp_path, _gguf(0, len(NEEDED), stated))


def test_lists_in_lists_in_lists(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", 9, 1) * 2 + struct.pack("<IQ", 0, 1) + b"\0"
    with pytest.raises(DataError, match="kind 9"):
        gguf(tmp_path, _gguf(0, 2 + len(NEEDED), STATED + _pair(b"a", 9, nested)))


@pytest.mark.parametrize(
    ("names", "said"),
    [(["model.bin"], "pickled"), (["README.md"], "no weights"), ([], "no weights"), (["a.pkl", "b.txt"], "pickled")],
)
def test_weights(names: list[str], said: str) -> None:
    refuse_pickled_weights(["a.bin", "model.safetensors"], "here")
    with pytest.raises(DataError, match=said):
        refuse_pickled_weights(names, "here")
