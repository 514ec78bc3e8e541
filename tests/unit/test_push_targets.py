"""Where can be published to, and which files may be sent and fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import TaskError
from finetune.push_targets import FolderTarget, HubTarget, UrlTarget, is_safe_name, parse_source, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubTarget("org/name")),
        ("folder:some/where", FolderTarget(Path("some/where"))),
        ("s3://bucket/a/b/", UrlTarget("s3://bucket/a/b")),
        ("memory://place", UrlTarget("memory://place")),
    ],
)
def test_targets_are_told_apart_and_named_as_they_were(text: str, expected: object) -> None:
    found = parse_target(text)
    assert found == expected
    assert parse_target(str(found)) == expected


@pytest.mark.parametrize("text", ["", "name", "a/b/c", "folder:", "../etc", "/tmp", "org/na me", "-org/name", "://x"])
def test_what_is_no_target_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(TaskError, match=r"org/name|folder:"):
        parse_target(text)


def test_a_folder_needs_no_prefix_where_it_is_read(tmp_path: Path) -> None:
    assert parse_source(str(tmp_path)) == FolderTarget(tmp_path)
    assert parse_source("org/name") == HubTarget("org/name")


@pytest.mark.parametrize(
    "path", ["adapter_model.safetensors", "merged/config.json", "LICENSE", "LICENSE.base", "gguf/a.q4_0.gguf", "NOTICE"]
)
def test_weights_and_texts_are_safe(path: str) -> None:
    assert is_safe_name(path)


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin",
        "a.pkl",
        "a.pt",
        "modeling.py",
        "../x.json",
        "a/../../x.json",
        "/etc/x.json",
        "a//b.json",
        "",
    ],
)
def test_code_pickles_and_places_outside_are_not(path: str) -> None:
    assert not is_safe_name(path)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.json", "\\"]), min_size=1, max_size=5).map("/".join))
def test_a_safe_name_stays_in_its_folder(path: str) -> None:
    if is_safe_name(path):
        assert (Path("/root/folder") / path).resolve().is_relative_to("/root/folder")
        assert "\\" not in path
