"""Canaries of every kind in every kind of file, and clean files without one."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_model import build_tokenizer

from finetune.errors import DataError
from finetune.publish_private import Private, describe_private, is_distinctive
from finetune.publish_rows import BLOCK, STRIDE, RowTexts, index_rows
from finetune.publish_scan import Finding, refuse_findings, scan_folder

ROW = "The tenant of the third floor says that the water in her kitchen has been brown since the ninth of May."
CHINESE_ROW = "租赁期限届满，承租人继续使用租赁物，出租人没有提出异议的，原租赁合同继续有效，但是租赁期限为不定期。"
ROWS = index_rows(
    [[ROW], [CHINESE_ROW], ["short"], *([f"Which chapter does this diagnosis belong to? {i}"] for i in range(9))]
)
SECRET = "Zq81-walrus-Tango_93xx"
PRIVATE = Private(
    paths=("/srv/people/anna", "/srv/人/anna", "/work"),
    users=("anna", "mkowalski-7"),
    hosts=("bigbox", "node-4711-b"),
    values=(("MY_SERVICE_TOKEN", SECRET),),
)

CANARIES = {
    "this machine's path": "/srv/people/anna/secret",
    "path below a short folder": "/work/project/x",
    "path in another script": "/srv/人/anna",
    "somebody's home": "/home/somebody/models/x",
    "home on a Mac": "/Users/somebody/x",
    "home on Windows": "C:\\Users\\somebody\\x",
    "file address": "file:///somewhere/rows.jsonl",
    "scratch folder": "/tmp/run-17/rows",
    "user at a host": "anna@bigbox",
    "user by key": "username: anna",
    "a distinctive user": "made by mkowalski-7 today",
    "a distinctive host": "ran on node-4711-b today",
    "host by key": 'hostname = "bigbox"',
    "token": "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1b",
    "key of a cloud": "AKIAQ3EGP5ZT2XNV7LRB",
    "value of the environment": f"see {SECRET} there",
    "e-mail": "write to anna.kowalska@clinic-nord.org please",
    "row": ROW,
    "part of a row": ROW[11:60],
    "row in Chinese": CHINESE_ROW,
}


def text_file(folder: Path, canary: str) -> None:
    (folder / "README.md").write_text(f"# A model\n\nFirst line.\n{canary}\n", encoding="utf-8")


def jinja_file(folder: Path, canary: str) -> None:
    (folder / "chat_template.jinja").write_text(f"{{# {canary} #}}{{{{ messages }}}}", encoding="utf-8")


def yaml_file(folder: Path, canary: str) -> None:
    (folder / "recipe.yaml").write_text(f"name: x\ndescription: '{canary}'\n", encoding="utf-8")


def json_value(folder: Path, canary: str) -> None:
    (folder / "results.json").write_text(json.dumps({"a": [1, {"b": f"x {canary} y"}]}, indent=2), encoding="utf-8")


def json_key(folder: Path, canary: str) -> None:
    (folder / "data.json").write_text(json.dumps({canary: 1}), encoding="utf-8")


def json_escaped(folder: Path, canary: str) -> None:
    spelled = "".join(f"\\u{unit:04x}" for unit in struct.unpack(f"<{len(canary)}H", canary.encode("utf-16-le")))
    (folder / "publish.json").write_text(f'{{"a": "{spelled}"}}', encoding="utf-8")


def json_on_one_line(folder: Path, canary: str) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base": canary, "r": 16}), encoding="utf-8")


def tokenizer_setting(folder: Path, canary: str) -> None:
    build_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"name_or_path": canary}), encoding="utf-8")


def token(folder: Path, canary: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([canary])
    tokenizer.save_pretrained(folder)


def weights_metadata(folder: Path, canary: str) -> None:
    save_file({"a": torch.zeros(4)}, folder / "adapter_model.safetensors", metadata={"format": "pt", "note": canary})


def weights_name(folder: Path, canary: str) -> None:
    save_file({f"layer {canary}": torch.zeros(4)}, folder / "adapter_model.safetensors")


def weights_bytes(folder: Path, canary: str) -> None:
    raw = torch.frombuffer(bytearray(b"\x00\x01" + canary.encode() + b"\xff\x00"), dtype=torch.uint8)
    save_file({"a": raw}, folder / "model.safetensors")


def weights_wide(folder: Path, canary: str) -> None:
    raw = torch.frombuffer(bytearray(b"\x01\x01" + canary.encode("utf-16-le") + b"\xff\x00"), dtype=torch.uint8)
    save_file({"a": raw}, folder / "model.safetensors")


def gguf_metadata(folder: Path, canary: str) -> None:
    write_gguf(folder / "model-f32.gguf", {"general.note": canary}, "a")


def gguf_tensor(folder: Path, canary: str) -> None:
    write_gguf(folder / "model-f32.gguf", {}, canary[:60])


def licence_text(folder: Path, canary: str) -> None:
    (folder / "LICENSE").write_text(f"A licence.\n{canary}\n", encoding="utf-8")


def model_file(folder: Path, canary: str) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a" + canary.encode() + b"\x15\x00\xff")


def below(folder: Path, canary: str) -> None:
    (folder / "merged" / "deep").mkdir(parents=True)
    (folder / "merged" / "deep" / "notes.txt").write_text(canary, encoding="utf-8")


SINKS: dict[str, Callable[[Path, str], None]] = {
    function.__name__: function
    for function in (
        text_file, jinja_file, yaml_file, json_value, json_key, json_escaped, json_on_one_line, tokenizer_setting,
        token, weights_metadata, weights_name, weights_bytes, weights_wide, gguf_metadata, gguf_tensor, licence_text,
        model_file, below,
    )
}  # fmt: skip
BLIND = {
    # A licence's text is public, and so are the addresses in it.
    ("licence_text", "e-mail"),
    # Letters of other scripts among bytes are any bytes; what is this machine's own is looked for there all the same.
    ("weights_bytes", "row in Chinese"),
    ("weights_wide", "row in Chinese"),
    ("model_file", "row in Chinese"),
    # The name of a tensor is cut to what the format holds.
    ("gguf_tensor", "row"),
}
"""What is not found, and why."""


def write_gguf(path: Path, texts: dict[str, str], tensor: str) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "the"])
    writer.add_array("numbers", [1, 2, 3])
    for name, text in texts.items():
        writer.add_string(name, text)
    writer.add_tensor(tensor, torch.zeros(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def scan(folder: Path, rows: RowTexts = ROWS) -> list[Finding]:
    return scan_folder(folder, PRIVATE, rows)


@pytest.mark.parametrize("sink", SINKS)
def test_every_canary_is_found_in_every_kind_of_file(sink: str, tmp_path: Path) -> None:
    missed = []
    for name, canary in CANARIES.items():
        folder = tmp_path / re.sub(r"\W", "", name)
        folder.mkdir()
        SINKS[sink](folder, canary)
        if not scan(folder) and (sink, name) not in BLIND:
            missed.append(name)
    assert missed == []


def test_what_is_blind_is_blind() -> None:
    """The list above holds no more than it must."""
    assert {sink for sink, _ in BLIND} <= set(SINKS)
    assert {name for _, name in BLIND} <= set(CANARIES)


@pytest.mark.parametrize("sink", SINKS)
def test_a_clean_file_is_clean(sink: str, tmp_path: Path) -> None:
    SINKS[sink](tmp_path, "a harmless text about root, work, anna and tmp; /home, C:, x@2x.png and user@example.org")
    assert scan(tmp_path) == []


def test_no_finding_repeats_what_was_found(tmp_path: Path) -> None:
    text_file(tmp_path, "\n".join(CANARIES.values()))
    findings = scan(tmp_path)
    shown = " ".join(map(str, findings))
    with pytest.raises(DataError) as refused:
        refuse_findings(findings, "here")
    assert len(findings) > 10
    for said in (shown, str(refused.value)):
        assert not [name for name, canary in CANARIES.items() if canary in said]
    assert "README.md, line " in str(refused.value)
    assert "and " in str(refused.value)


def test_the_place_is_the_line(tmp_path: Path) -> None:
    text_file(tmp_path, CANARIES["token"])
    assert str(scan(tmp_path)[0]) == "README.md, line 4: Hugging Face token"


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "rows.csv", "x.py", "archive.tar.gz"])
def test_other_kinds_of_file_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    assert [finding.kind for finding in scan(tmp_path)] == ["not a kind of file that is published"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "nowhere.json")
    assert [finding.kind for finding in scan(tmp_path)] == ["not a kind of file that is published"]


def test_a_file_s_name_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "made by mkowalski-7.txt").write_text("x")
    assert [finding.place for finding in scan(tmp_path)] == ["its name"]


def test_personal_numbers_are_found_where_people_write(tmp_path: Path) -> None:
    text_file(tmp_path, "call +49 30 2318 4711, IBAN DE89 3704 0044 0532 0130 00, card 4111 1111 1111 1111")
    assert {finding.kind.removeprefix("personal data: ") for finding in scan(tmp_path)} == {"phone", "iban", "card"}


def test_random_weights_raise_no_alarm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        save_file({"a": torch.randn(1_000_000).to(dtype)}, tmp_path / f"model-{i}.safetensors")
    assert scan(tmp_path) == []


@pytest.mark.parametrize("before", [b"\x01", b"\x01\x01"])
def test_wide_letters_are_found_wherever_they_begin(before: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(before + CANARIES["token"].encode("utf-16-le") + b"\xff\xff")
    assert [finding.kind for finding in scan(tmp_path)][:1] == ["Hugging Face token"]


def test_what_is_too_short_to_be_meant_among_weights_is_no_address(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"\xff\x01 xy@ab.de \x00\xff")
    assert scan(tmp_path) == []
    (tmp_path / "a.model").write_bytes(b"\xff\x01 karla@clinic-nord.de \x00\xff")
    assert [finding.kind for finding in scan(tmp_path)] == ["personal data: email"]


def test_what_lies_across_two_chunks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.publish_bytes.CHUNK_BYTES", 1000)
    monkeypatch.setattr("finetune.publish_bytes.OVERLAP_BYTES", 200)
    for start in range(900, 1100, 7):
        (tmp_path / "a.model").write_bytes(b"\xff" * start + CANARIES["token"].encode() + b"\xff" * 500)
        assert [finding.kind for finding in scan(tmp_path)][:1] == ["Hugging Face token"], start


def test_damaged_headers_are_looked_through_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 4 + CANARIES["token"].encode())
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + b"\xff" * 30 + CANARIES["token"].encode())
    (tmp_path / "empty.json").write_bytes(b"")
    assert {finding.file for finding in scan(tmp_path)} == {"a.safetensors", "b.gguf"}


TEXT = st.text(min_size=BLOCK + STRIDE - 1, max_size=120)


@given(row=TEXT, before=st.text(max_size=40), after=st.text(max_size=40), start=st.integers(0, 80))
def test_any_piece_of_a_row_that_is_long_enough_is_found(row: str, before: str, after: str, start: int) -> None:
    start = min(start, len(row) - (BLOCK + STRIDE - 1))
    piece = row[start : start + BLOCK + STRIDE - 1]
    assert list(index_rows([[row]]).find(before + piece + after))


@given(row=TEXT, other=TEXT)
def test_nothing_else_is_found(row: str, other: str) -> None:
    parts = {row[i : i + BLOCK] for i in range(len(row))}
    found = set(index_rows([[row]]).find(other))
    assert all(other[i : i + BLOCK] in parts for i in found)


def test_what_all_rows_ask_is_no_row_s_own() -> None:
    question = "Which chapter of the classification does this diagnosis belong to? "
    rows = index_rows([[f"{question}{i} {str(i) * 30}"] for i in range(300)])
    assert not list(rows.find(question))
    assert list(rows.find("217" * 20))
    assert not list(index_rows([[ROW]], shared=[ROW]).find(ROW))


def test_this_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "bigbox-17.example.net")
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    environment = {
        "HF_TOKEN": "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1b",
        "MY_API_KEY": "7f3a-9c1d-22",
        "SSH_AUTH_SOCK": "/run/agent.4711",
        "TOKENIZERS_PARALLELISM": "false",
        "LANG": "en_GB.UTF-8",
    }
    found = describe_private([tmp_path / "run"], environment)
    assert str(tmp_path / "run") in found.paths
    assert str(Path.home()) in found.paths
    assert "/" not in found.paths
    assert found.users == (), "everybody's"
    assert found.hosts == ("bigbox-17.example.net", "bigbox-17")
    assert {name for name, _ in found.values} == {"HF_TOKEN", "MY_API_KEY"}
    assert is_distinctive("mkowalski-7")
    assert not is_distinctive("martin")


def test_a_user_that_is_a_number_alone_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container with any uid: the list of users knows none."""
    monkeypatch.setattr("os.getuid", lambda: 987_654_321)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert describe_private((), {}).users == ()


def test_a_row_that_goes_on_behind_a_class_makes_no_class_private() -> None:
    label = "Diseases of the respiratory system"
    row = f"user\n{label} complicating childbirth and the time after it"
    known = index_rows([[row]], [label])
    assert list(known.find(f"| {label} | 18 |")) == []
    assert list(known.find(f"\n{label}\n")) == []
    assert list(known.find(row[5:]))
