"""What a base is hashed by, and whose word is taken that an entry of the cache is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from finetune.base_hashes import FileHashes, hash_base_files, hash_of_files, is_of_base, is_vouched_for, vouch_for

FILES: FileHashes = (("config.json", "aa"), ("model.safetensors", "bb"))


def test_a_base_is_its_weights_its_configuration_and_its_tokenizer(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "README.md", "model.safetensors", "pytorch_model.bin", "config.json"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "deeper.safetensors").mkdir()
    (tmp_path / "deeper.safetensors" / "config.json").write_text("{}", encoding="utf-8")
    names = ("config.json", "model.safetensors", "tokenizer.json")
    assert hash_base_files(tmp_path) == tuple((name, hashlib.sha256(name.encode()).hexdigest()) for name in names)


@pytest.mark.parametrize("name", ["config.json.bak", "training_args.bin", "model.safetensors.part", "Readme.md", ""])
def test_what_lies_beside_a_base_is_not_of_it(name: str) -> None:
    assert not is_of_base(name)


OTHERS: dict[str, FileHashes] = {
    "a file is gone": FILES[:1],
    "a file came": (*FILES, ("tokenizer.json", "cc")),
    "a file changed": (FILES[0], ("model.safetensors", "bc")),
    "a file has another name": (FILES[0], ("other.safetensors", "bb")),
    "two were exchanged": (("config.json", "bb"), ("model.safetensors", "aa")),
    "none is left": (),
}


@pytest.mark.parametrize("files", OTHERS.values(), ids=OTHERS)
def test_other_files_have_another_hash_and_are_not_vouched_for(files: FileHashes, tmp_path: Path) -> None:
    assert hash_of_files(files) != hash_of_files(FILES)
    vouch_for(tmp_path / "word", "entry", FILES)
    assert is_vouched_for(tmp_path / "word", "entry", FILES)
    assert not is_vouched_for(tmp_path / "word", "entry", files)


def test_the_word_of_another_entry_is_not_taken(tmp_path: Path) -> None:
    vouch_for(tmp_path / "word", "entry", FILES)
    assert not is_vouched_for(tmp_path / "word", "another entry", FILES)


@pytest.mark.parametrize("kept", [0, 1, 63])
@pytest.mark.parametrize("added", [b"", b"\n", b"\xff"])
def test_a_word_that_is_gone_or_damaged_vouches_for_nothing(kept: int, added: bytes, tmp_path: Path) -> None:
    assert not is_vouched_for(tmp_path / "word", "entry", FILES)
    vouch_for(tmp_path / "word", "entry", FILES)
    (tmp_path / "word").write_bytes((tmp_path / "word").read_bytes()[:kept] + added)
    assert not is_vouched_for(tmp_path / "word", "entry", FILES)
