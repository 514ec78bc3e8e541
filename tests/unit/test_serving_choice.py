"""Which server is started, from facts alone, and with which command line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import MachineError
from finetune.peft_config import PeftConfig
from finetune.serving import Place, check_vllm_takes
from finetune.serving_choice import SERVERS, VLLM_RANKS, Facts, Launch, choose_server, command_line

EVERYTHING = Facts(gpu=True, vllm=True, missing=(), llama_cpp=True, gguf=True, adapters=0)
LAUNCH = Launch("tiny", "where/tiny", "127.0.0.1", 8000)
FACTS = st.builds(
    Facts,
    gpu=st.booleans(),
    vllm=st.booleans(),
    missing=st.sampled_from([(), ("fastapi",)]),
    llama_cpp=st.booleans(),
    gguf=st.booleans(),
    adapters=st.integers(0, 2),
)


@pytest.mark.parametrize(
    ("changes", "server", "reasons"),
    [
        ({}, "vllm", ()),
        ({"vllm": False}, "transformers", ("vllm: it is not installed",)),
        ({"gpu": False}, "transformers", ("vllm: there is no GPU",)),
        ({"gpu": False, "missing": ("uvicorn",)}, "llama.cpp", ("vllm: there", "transformers: uvicorn is not")),
        ({"adapters": 2}, "vllm", ()),
    ],
)
def test_the_best_that_can_is_chosen(changes: dict[str, object], server: str, reasons: tuple[str, ...]) -> None:
    choice = choose_server(replace(EVERYTHING, **changes))  # type: ignore[arg-type]
    assert choice.server == server
    assert len(choice.reasons) == len(reasons)
    for found, expected in zip(choice.reasons, reasons, strict=True):
        assert found.startswith(expected)


@given(FACTS)
def test_what_is_chosen_can_do_it_and_nothing_better_could(facts: Facts) -> None:
    able = [server for server in SERVERS if can(server, facts)]
    if not able:
        with pytest.raises(MachineError) as refusal:
            choose_server(facts)
        assert all(server in refusal.value.what for server in SERVERS)
        return
    choice = choose_server(facts)
    assert choice.server == able[0]
    if facts.adapters:
        assert choice.server == "vllm"
    assert len(choice.reasons) == SERVERS.index(choice.server)
    assert choose_server(facts, choice.server).server == choice.server


def can(server: str, facts: Facts) -> bool:
    if server == "vllm":
        return facts.vllm and facts.gpu
    if facts.adapters:
        return False
    return not facts.missing if server == "transformers" else facts.llama_cpp and facts.gguf


@pytest.mark.parametrize("server", ["transformers", "llama.cpp"])
def test_several_adapters_are_refused_where_the_server_cannot(server: str) -> None:
    with pytest.raises(MachineError, match="adapters") as refused:
        choose_server(replace(EVERYTHING, adapters=1), server)  # type: ignore[arg-type]
    assert "merge the adapter" in refused.value.hint


def test_none_is_refused_with_every_reason_and_what_to_install() -> None:
    with pytest.raises(MachineError, match=r"vllm: .*; transformers: .*; llama\.cpp: ") as refused:
        choose_server(Facts(gpu=False, vllm=False, missing=("fastapi",), llama_cpp=False, gguf=False, adapters=0))
    assert "finetune-recipes[serve]" in refused.value.hint
    with pytest.raises(MachineError, match="GGUF"):
        choose_server(replace(EVERYTHING, gguf=False), "llama.cpp")
    with pytest.raises(MachineError, match="not installed") as refused:
        choose_server(replace(EVERYTHING, vllm=False), "vllm")
    assert refused.value.hint == "pip install 'vllm'"
    assert choose_server(replace(EVERYTHING, gpu=False), "vllm").server == "vllm"


@pytest.mark.parametrize("server", SERVERS)
def test_every_command_line_says_where_and_as_what(server: str) -> None:
    words = command_line(server, LAUNCH)  # type: ignore[arg-type]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "8000"
    assert "tiny" in words
    assert "--trust-remote-code" not in words


def test_llama_cpp_takes_the_context_of_the_model() -> None:
    words = command_line("llama.cpp", LAUNCH)
    assert words[words.index("--n_ctx") + 1] == "0"


@pytest.mark.parametrize(("rank", "most"), [(1, 8), (8, 8), (9, 16), (100, 128), (512, 512)])
def test_vllm_is_told_a_rank_that_it_takes(rank: int, most: int) -> None:
    words = command_line("vllm", replace(LAUNCH, adapters=(("a", "x/a"), ("b", "x/b")), rank=rank))
    assert words[words.index("--max-lora-rank") + 1] == str(most)
    assert most in VLLM_RANKS
    assert words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--lora-modules") + 1 :] == ["a=x/a", "b=x/b"]
    with pytest.raises(MachineError, match="rank 512 at most, and one has 513"):
        command_line("vllm", replace(LAUNCH, adapters=(("a", "x/a"),), rank=513))


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, None),
        ({"use_rslora": True}, None),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ("lm_head",)}, "modules_to_save"),
        ({"trainable_token_indices": (1,)}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ],
)
def test_adapters_that_vllm_does_not_load_are_refused(settings: dict[str, object], refused: str | None) -> None:
    config = PeftConfig.model_validate({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **settings})
    if refused is None:
        check_vllm_takes(config, "here")
        return
    with pytest.raises(MachineError, match=refused):
        check_vllm_takes(config, "here")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("a.example", "http://a.example:80"),
    ],
)
def test_a_server_that_listens_everywhere_is_asked_here(host: str, address: str) -> None:
    assert Place(host, 80).address == address
