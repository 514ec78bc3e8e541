"""Hostile files: models, weights, GGUF, tokenizers, archives, pickles and rows."""

# hostile texts in one line each

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import torch
from attacked import Attack
from safetensors.torch import save_file

from evaluation.adapter_files import check_adapter_config, check_adapter_weights
from evaluation.model import ModelSpec, load_model
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.base_files import open_base
from finetune.bases import check_model_folder
from finetune.gguf import convert_gguf
from finetune.parquet import read_parquet
from finetune.pypi import _unpack, parse_pypi_reference
from finetune.row_check import Unreadable
from finetune.row_files import read_csv, read_json, read_jsonl
from finetune.weight_files import refuse_pickled_weights

CANARY = "import pathlib; pathlib.Path('executed').touch()"


class Payload:
    """What unpickling of it runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (CANARY,))


def _pickled(file: Path) -> None:
    torch.save({"model.embed_tokens.weight": Payload()}, file)


def _header(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """Build a safetensors file (https://huggingface.co/docs/safetensors/index#format)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


NAME = "model.embed_tokens.weight"
SAFETENSORS: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header of 2^63": _header(b"{}", length=2**63),
    "a header of 2^40": _header(b"{}", length=2**40),
    "a header of 200 MB that is not there": _header(b"{}", length=200_000_000),
    "no JSON": _header(b"not JSON"),
    "a list": _header(b"[]"),
    "bytes that are no UTF-8": _header(b'{"\xff": 1}'),
    "ten thousand brackets": _header(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "overlapping tensors": _header({NAME: _tensor([2], 0, 8), "b": _tensor([2], 4, 12)}, b"\0" * 12),
    "a gap": _header({NAME: _tensor([1], 0, 4), "b": _tensor([1], 8, 12)}, b"\0" * 12),
    "beyond the end": _header({NAME: _tensor([1000], 0, 4000)}, b"\0" * 8),
    "backwards": _header({NAME: _tensor([1], 8, 4)}, b"\0" * 8),
    "negative": _header({NAME: _tensor([1], -4, 0)}, b"\0" * 8),
    "a shape that overflows": _header({NAME: _tensor([2**62, 2**62], 0, 4)}, b"\0" * 4),
    "a negative shape": _header({NAME: _tensor([-1], 0, 4)}, b"\0" * 4),
    "an unknown type": _header({NAME: _tensor([1], 0, 4, "PICKLE")}, b"\0" * 4),
    "a name twice": _header(b'{"a": %b, "a": %b}' % ((json.dumps(_tensor([1], 0, 4)).encode(),) * 2), b"\0" * 4),
    "no offsets": _header({NAME: {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "bytes behind the end": _header({NAME: _tensor([1], 0, 4)}, b"\0" * 4_000),
    "a pickle by that name": pickle.dumps(Payload()),
}


def _weights(data: bytes) -> Callable[[Path], object]:
    """Open them as a base's weights, and as an adapter's."""

    def attempt(place: Path) -> object:
        said = []
        (place / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        for name, read in (("model.safetensors", open_base), ("adapter_model.safetensors", check_adapter_weights)):
            (place / name).write_bytes(data)
            try:
                said.append(f"taken: {read(place)}")
            except Exception as error:
                from finetune.errors import DataError

                if not isinstance(error, DataError):
                    raise
                refused = error
        if said:
            return said
        raise refused

    return attempt


def _string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _gguf(tensors: int = 0, pairs: int = 0, rest: bytes = b"", version: int = 3, magic: bytes = b"GGUF") -> bytes:
    """Build a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
    return magic + struct.pack("<IQQ", version, tensors, pairs) + rest


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


ARCHITECTURE = _pair(b"general.architecture", 8, _string(b"llama"))
GGUF: dict[str, bytes] = {
    "nothing": b"",
    "the magic alone": b"GGUF",
    "another magic": _gguf(magic=b"GGML"),
    "version 99": _gguf(version=99),
    "version 0": _gguf(version=0),
    "2^60 pairs": _gguf(pairs=2**60, rest=ARCHITECTURE),
    "2^60 tensors": _gguf(tensors=2**60, pairs=1, rest=ARCHITECTURE),
    "a key of 2^60 bytes": _gguf(pairs=1, rest=_string(b"a", 2**60)),
    "a text of 2^60 bytes": _gguf(pairs=1, rest=_pair(b"general.architecture", 8, _string(b"a", 2**60))),
    "an unknown kind": _gguf(pairs=1, rest=_pair(b"a", 77, b"\0" * 8)),
    "a list of 2^60": _gguf(pairs=1, rest=_pair(b"a", 9, struct.pack("<IQ", 4, 2**60))),
    "lists in lists": _gguf(pairs=1, rest=_pair(b"a", 9, struct.pack("<IQ", 9, 1) * 5_000)),
    "a text that is no UTF-8": _gguf(pairs=1, rest=_pair(b"general.architecture", 8, _string(b"\xff\xfe"))),
    "a key twice": _gguf(pairs=2, rest=ARCHITECTURE * 2),
    "another architecture": _gguf(pairs=1, rest=_pair(b"general.architecture", 8, _string(b"gpt2"))),
    "no settings": _gguf(pairs=1, rest=ARCHITECTURE),
    "a tensor beyond the end": _gguf(
        1, 1, ARCHITECTURE + _string(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 64, 0, 2**40)
    ),
    "a tensor of 2^62 numbers": _gguf(
        1, 1, ARCHITECTURE + _string(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0)
    ),
    "a tensor of 2^32 dimensions": _gguf(1, 1, ARCHITECTURE + _string(b"a") + struct.pack("<I", 2**32 - 1)),
    "a tensor of an unknown type": _gguf(
        1, 1, ARCHITECTURE + _string(b"token_embd.weight") + struct.pack("<IQIQ", 1, 64, 999, 0)
    ),
    "a zip by that name": b"PK\x03\x04" + b"\0" * 100,
    "a pickle by that name": pickle.dumps(Payload()),
}


def _convert(data: bytes) -> Callable[[Path], object]:
    def attempt(place: Path) -> object:
        file = place / "x.gguf"
        file.write_bytes(data)
        return convert_gguf(file, "0" * 64, place / "cache", lambda _: None)

    return attempt


Change = Callable[[Path], object]


def _edited(name: str, **values: Any) -> Change:
    def change(base: Path) -> None:
        file = base / name
        document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps(document | values), encoding="utf-8")

    return change


def _text(name: str, text: str | bytes) -> Change:
    return lambda base: (base / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def _code(base: Path) -> None:
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (base / f"{name}.py").write_text(f"{CANARY}\nclass Evil: pass\n", encoding="utf-8")
    _edited(
        "config.json", auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    )(base)


def _code_of_a_tokenizer(base: Path) -> None:
    (base / "tokenization_evil.py").write_text(f"{CANARY}\nclass Evil: pass\n", encoding="utf-8")
    _edited(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]}, tokenizer_class="Evil"
    )(base)


def _only_pickles(base: Path) -> None:
    (base / "model.safetensors").unlink()
    _pickled(base / "pytorch_model.bin")


def _indexed(shard: str) -> Change:
    def change(base: Path) -> None:
        (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
        _edited("model.safetensors.index.json", metadata={}, weight_map={NAME: shard})(base)

    return change


MODELS: dict[str, Change] = {
    "its own code": _code,
    "a tokenizer's own code": _code_of_a_tokenizer,
    "pickled weights alone": _only_pickles,
    "an index that leads out": _indexed("../other/model.safetensors"),
    "an index that leads to the root": _indexed("/etc/passwd"),
    "an index that names a pickle": lambda base: (_pickled(base / "x.bin"), _indexed("x.bin")(base)),
    "an index that is a list": lambda base: _text("model.safetensors.index.json", "[]")(base),
    "an index of ten thousand brackets": _text("model.safetensors.index.json", "[" * 10_000),
    "another architecture": _edited("config.json", model_type="gpt2"),
    "no architecture": _edited("config.json", model_type=None),
    "ten thousand brackets for a config": _text("config.json", "[" * 10_000),
    "a config that is no UTF-8": _text("config.json", b"\xff\xfe{}"),
    "a config that is a list": _text("config.json", "[]"),
    "an empty config": _text("config.json", ""),
    "quantized already": _edited("config.json", quantization_config={"quant_method": "gptq"}),
    "a billion layers": _edited("config.json", num_hidden_layers=10**9),
    "a vocabulary of 2^40": _edited("config.json", vocab_size=2**40),
    "no heads": _edited("config.json", num_attention_heads=0),
    "negative layers": _edited("config.json", num_hidden_layers=-1),
    "layers by name": _edited("config.json", num_hidden_layers="many"),
    "an activation by name of a module": _edited("config.json", hidden_act="os.system"),
    "ten thousand brackets for a tokenizer": _text("tokenizer.json", '{"a":' + "[" * 10_000),
    "a tokenizer that is none": _text("tokenizer.json", "{}"),
    "a tokenizer's config that is a list": _text("tokenizer_config.json", "[]"),
    "ten thousand brackets for its config": _text("tokenizer_config.json", '{"a":' + "[" * 10_000),
    "ten thousand brackets to generate by": _text("generation_config.json", '{"a":' + "[" * 10_000),
    "a generation config with code": _edited(
        "generation_config.json", custom_generate="org/name", trust_remote_code=True
    ),
    "a template that never ends": _text(
        "chat_template.jinja", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a template that reaches out": _text(
        "chat_template.jinja", "{{ cycler.__init__.__globals__.os.system('touch executed') }}"
    ),
    "cut-off weights": lambda base: os.truncate(base / "model.safetensors", 1_000),
    "weights of another width": lambda base: save_file({NAME: torch.ones(3, 3)}, base / "model.safetensors"),
}
MAY_BE_TAKEN = {"a generation config with code", "a template that reaches out"}
"""What is never looked at, or only refused when it is asked to render."""


def _model(tiny: Path, change: Change) -> tuple[Change, Change]:
    """Copy the base and change it; then check, load and render with it."""

    def prepare(place: Path) -> None:
        shutil.copytree(tiny, place / "base")
        change(place / "base")

    def attempt(place: Path) -> object:
        folder = place / "base"
        check_model_folder(folder, "base")
        open_base(folder)
        model = load_model(ModelSpec(folder, dtype="float32", device="cpu"))
        Renderer(load_tokenizer(folder)).stop_ids()
        return model.config.model_type

    return prepare, attempt


def _member(name: str, data: bytes = b"x", mode: int = 0, flags: int = 0) -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.flag_bits |= flags
        archive.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)

    return add


def _twice(archive: zipfile.ZipFile) -> None:
    for data in (b"x", b"y"):
        _member("x.csv", data)(archive)


WHEELS: dict[str, Callable[[zipfile.ZipFile], None]] = {
    "the member leads out": _member("../x.csv"),
    "the member is absolute": _member("/x.csv"),
    "the member is a link": _member("x.csv", b"/etc/passwd", 0o120777),
    "the member is a device": _member("x.csv", b"", 0o020666),
    "the member is a folder": _member("x.csv/"),
    "the member is there twice": _twice,
    "the member has other bytes": _member("x.csv", b"y"),
    "no such member": _member("y.csv"),
}


def _wheel(fill: Callable[[zipfile.ZipFile], None] | bytes) -> Callable[[Path], object]:
    def attempt(place: Path) -> object:
        file = place / "a.whl"
        if isinstance(fill, bytes):
            file.write_bytes(fill)
        else:
            with zipfile.ZipFile(file, "w") as archive:
                fill(archive)
        (place / "out").mkdir()
        return _unpack(file, parse_pypi_reference("pypi:a==1/x.csv"), "0" * 64, place / "out" / "x.csv")

    return attempt


def _zip_of(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.csv", data)
    return file.getvalue()


def _nested(depth: int) -> str:
    return '{"a":' + "[" * depth + "]" * depth + "}"


ROWS: dict[str, tuple[str, bytes]] = {
    "ten thousand brackets": ("x.jsonl", _nested(10_000).encode() + b"\n"),
    "a hundred brackets": ("x.jsonl", _nested(100).encode() + b"\n"),
    "a field of 30 MB": ("x.jsonl", b'{"a": "' + b"x" * 30_000_000 + b'"}\n'),
    "NUL": ("x.jsonl", b'{"a": "x\0y"}\n\0\0\0\n'),
    "no UTF-8": ("x.jsonl", b'{"a": "\xff\xfe"}\n'),
    "half a surrogate": ("x.jsonl", b'{"a": "\\ud800"}\n'),
    "a number of 100,000 digits": ("x.jsonl", b'{"a": ' + b"9" * 100_000 + b"}\n"),
    "NaN": ("x.jsonl", b'{"a": NaN, "b": Infinity, "c": 1e999}\n'),
    "a key twice": ("x.jsonl", b'{"a": 1, "a": 2}\n'),
    "fifty thousand keys": ("x.jsonl", json.dumps({f"k{i}": i for i in range(50_000)}).encode()),
    "a key twice, at the end": (
        "x.jsonl",
        ("{" + "".join(f'"k{i}": 1, ' for i in range(50_000)) + '"z": 1, "z": 2}').encode(),
    ),
    "no object": ("x.jsonl", b'[1]\n"a"\n1\nnull\n'),
    "a bomb of gzip": ("x.jsonl.gz", gzip.compress(b"\0" * 100_000_000, 9)),
    "gzip that breaks off": ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1_000)[:40]),
    "gzip that is none": ("x.jsonl.gz", b'{"a": 1}\n'),
    "brackets for a list": ("x.json", b"[" * 100_000),
    "an object for a list": ("x.json", b'{"a": 1}'),
    "a quote that never closes": ("x.csv", b'a,b\n"' + b"x,y\n" * 50_000),
    "quotes in quotes": ("x.csv", b"a,b\n" + b'"x"y"z,1\n' * 5_000),
    "a hundred thousand columns": ("x.csv", b",".join(b"c%d" % i for i in range(100_000)) + b"\n1\n"),
    "a column twice": ("x.csv", b"a,a\n1,2\n"),
    "a header alone": ("x.csv", b""),
    "a workbook by that name": ("x.csv", b"PK\x03\x04" + b"\0" * 100),
    "UTF-16": ("x.csv", "a,b\n1,2\n".encode("utf-16")),
    "Parquet that breaks off": ("x.parquet", b"PAR1" + b"\0" * 100),
    "Parquet with a footer of 2^31": ("x.parquet", b"PAR1" + b"\0" * 100 + struct.pack("<I", 2**31 - 1) + b"PAR1"),
    "Parquet that is a pickle": ("x.parquet", pickle.dumps(Payload())),
}


def _read(name: str, data: bytes) -> Callable[[Path], object]:
    """Read all rows; every one has to be set aside, or the file refused."""

    def attempt(place: Path) -> object:
        file = place / name
        file.write_bytes(data)
        kind = name.removesuffix(".gz").rpartition(".")[2]
        readers = {"jsonl": read_jsonl, "json": read_json, "csv": read_csv, "parquet": read_parquet}
        rows = list(readers[kind](file))
        return [row for row in rows if not isinstance(row, Unreadable)][:3]

    return attempt


def _parquet_of_pickles(place: Path) -> object:
    """A column of Python objects, as pandas would store them: bytes, which no row may hold."""
    table = pyarrow.table({"a": pyarrow.array([pickle.dumps(Payload())])})
    pyarrow.parquet.write_table(table, place / "x.parquet")
    return [row for row in read_parquet(place / "x.parquet") if not isinstance(row, Unreadable)]


def _array_of_pickles(place: Path) -> object:
    numpy.save(place / "x.npy", numpy.array([Payload()], dtype=object), allow_pickle=True)
    refuse_pickled_weights(os.listdir(place), str(place))  # noqa: PTH208
    return None


def _adapter_settings(**values: Any) -> Callable[[Path], object]:
    def attempt(place: Path) -> object:
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | values
        (place / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return check_adapter_config(place)

    return attempt


ADAPTERS: dict[str, dict[str, Any]] = {
    "a module to import": {"megatron_core": "evil", "megatron_config": {}},
    "another adapter's weights": {"path_initial_model_for_weight_conversion": "../x"},
    "a router over adapters": {"arrow_config": {"router": "x"}},
    "prompt tuning from a pickle": {"peft_type": "MULTITASK_PROMPT_TUNING"},
    "adapters of the hub": {"peft_type": "XLORA", "adapters": {"0": "org/name"}},
    "no kind": {"peft_type": None},
    "a pattern of layers": {"layers_pattern": [r"(\w+)+!"]},
    "a pattern of exclusions": {"exclude_modules": r"(a|a)*b"},
    "a long pattern": {"target_modules": "a" * 501},
    "five repeats": {"target_modules": ".*.*.*.*.*x"},
    "a pattern of alphas": {"alpha_pattern": {r"(\w|\.)*!": 1}},
    "rank 0": {"r": 0},
    "a rank of text": {"r": "4"},
    "an infinite alpha": {"lora_alpha": float("inf")},
    "a rank by pattern without end": {"rank_pattern": {"q_proj": 10**12}},
}


def files(tiny: Path) -> Iterator[Attack]:
    """Yield every attack by a file; `tiny` is a good base."""
    yield from (Attack(f"safetensors: {name}", _weights(data)) for name, data in SAFETENSORS.items())
    yield from (Attack(f"GGUF: {name}", _convert(data)) for name, data in GGUF.items())
    for name, change in MODELS.items():
        prepare, attempt = _model(tiny, change)
        yield Attack(f"model: {name}", attempt, name in MAY_BE_TAKEN, prepare)
    yield from (Attack(f"wheel: {name}", _wheel(fill)) for name, fill in WHEELS.items())
    yield Attack("wheel: no archive", _wheel(b"not a zip"))
    yield Attack("wheel: breaks off", _wheel(_zip_of(b"x" * 1_000)[:60]))
    yield Attack("wheel: a bomb", _wheel(_zip_of(b"\0" * 50_000_000)))
    yield from (Attack(f"rows: {name}", _read(*file), True) for name, file in ROWS.items())
    yield Attack("rows: pickles in Parquet", _parquet_of_pickles, True)
    yield Attack("weights: an array of pickles", _array_of_pickles)
    yield from (Attack(f"adapter: {name}", _adapter_settings(**values)) for name, values in ADAPTERS.items())
