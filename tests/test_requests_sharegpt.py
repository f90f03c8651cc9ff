"""ShareGPT: the sample that vLLM's own loop draws, and files that are read a piece at a time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_files import SHAREGPT, talk

from traces import InputError
from traces.requests import open_requests, sharegpt
from traces.requests.tokens import estimate

TINY = Path(__file__).parents[1] / "experiments/tiny_moe/tiny-moe.gguf"


def written(folder: Path, content: Any) -> Path:
    path = folder / "sharegpt.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def slow(
    data: list[dict[str, Any]], seed: int, n: int | None, output_len: int | None
) -> list[tuple[int, int]]:
    """``ShareGPTDataset`` of vllm/benchmarks/datasets/datasets.py, with the estimate as tokenizer."""
    data = [e for e in data if "conversations" in e and len(e["conversations"]) >= 2]
    random.seed(seed)
    random.shuffle(data)
    samples: list[tuple[int, int]] = []
    for entry in data:
        if n is not None and len(samples) >= n:
            break
        prompt = -(-len(entry["conversations"][0]["value"].encode()) // 4)
        output = -(-len(entry["conversations"][1]["value"].encode()) // 4)
        output = output if output_len is None else output_len
        if prompt < 4 or (output_len is None and output < 4):
            continue
        if prompt > 1024 or prompt + output > 2048:
            continue
        samples.append((prompt, output))
    return samples


LENGTHS = st.integers(0, 40) | st.sampled_from((4095, 4096, 4097, 8160, 8192))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(LENGTHS, max_size=4), max_size=12),
    st.integers(0, 99),
    st.none() | st.integers(1, 8),
    st.none() | st.integers(1, 2000),
)
def test_as_vllm_samples(
    tmp_path_factory: Any,
    lengths: list[list[int]],
    seed: int,
    limit: int | None,
    output_len: int | None,
) -> None:
    data: list[dict[str, Any]] = [
        talk(*("é" * (n // 2) + "x" * (n % 2) for n in c)) for c in lengths
    ]
    path = written(tmp_path_factory.getbasetemp(), [*data, {"id": "none"}])
    expected = slow(data, seed, limit, output_len)
    if not expected:
        with pytest.raises(InputError, match="none of"):
            open_requests(path, seed=seed, limit=limit, output_len=output_len)
        return
    t = open_requests(path, seed=seed, limit=limit, output_len=output_len)
    assert list(zip(t.prompt.tolist(), t.output.tolist(), strict=True)) == expected
    assert t.arrival_ns is None and "tokens estimated, 4 bytes" in t.notes[1]


def test_what_it_says(tmp_path: Path) -> None:
    t = open_requests(written(tmp_path, SHAREGPT), limit=1000)
    assert t.notes[0] == "sampled as vllm bench serve does, seed 0: 29 of 29 conversations"
    assert t.notes[2] == "1,000 were asked for; vLLM would send some twice"
    assert t.format == "sharegpt"
    assert open_requests(tmp_path / "sharegpt.json", format="sharegpt", seed=1).prompt.tolist() != (
        t.prompt.tolist()
    )
    assert estimate("") == 0 and estimate("abcd") == 1 and estimate("abcde") == 2
    assert estimate("\ud800") == 1


def test_counted_by_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the capture extra is not installed")
    from traces.requests.tokens import Tokenizer

    texts = [("the cat sat on the mat " * n, "and so on \ud83d" * 3) for n in (1, 2, 3)]
    path = written(tmp_path, [talk(*two) for two in texts])
    t = open_requests(path, tokenizer=TINY)
    assert t.notes[1] == "tokens counted by tiny-moe.gguf"
    for _ in range(3):  # the place of a parameter must not depend on what was on the stack
        with Tokenizer(TINY) as tokenizer:
            assert tokenizer._model.n_ctx_train == 0, "weights were loaded"
            assert sorted(t.prompt) == [tokenizer.count(prompt) for prompt, _ in texts]
            # As the model tells when it is loaded whole: the start token included.
            assert tokenizer.count("") in (0, 1)
    with pytest.raises(InputError, match=r"tokenizer: .*no such file"):
        open_requests(path, tokenizer=tmp_path / "no.gguf")
    with pytest.raises(InputError, match="cannot load it"):
        open_requests(path, tokenizer=path)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
def test_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = written(tmp_path, json.dumps(SHAREGPT, indent=1))
    monkeypatch.setattr(sharegpt, "_READ", size)
    assert [e for _, e in sharegpt.entries(path)] == SHAREGPT
    assert [n for n, _ in sharegpt.entries(path)] == list(range(1, len(SHAREGPT) + 1))


GOOD = json.dumps(talk("hello there you", "yes yes yes yes"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "none of 0 conversations"),
        ("[", "conversation 1: not valid JSON"),
        (f"[{GOOD}", "conversation 1: no comma"),
        (f"[{GOOD},", "conversation 2: not valid JSON"),
        (f"[{GOOD} {GOOD}]", "conversation 1: no comma"),
        (f"[{GOOD}, 7]", "conversation 2: not an object"),
        (f'[{GOOD}, {{"conversations": 7}}]', "conversation 2: conversations is not a list"),
        (f'[{GOOD}, {{"conversations": [1, 2]}}]', "conversation 2: turn 0 has no text"),
        (f'[{GOOD}, {{"conversations": [{{"value": "x"}}, {{}}]}}]', "conversation 2: turn 1 has no"),
        ("[" * 100_000, "conversation 1: nested too deeply"),
        (f"[{GOOD}, {'9' * 5000}]", "conversation 2: a number of thousands"),
        ('[{"a": "' + "x" * (9 << 20), "conversation 1: not valid JSON, or longer than 8 MiB"),
    ],
    ids=range(12),
)  # fmt: skip
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as e:
        open_requests(written(tmp_path, text))
    assert "\n" not in str(e.value)


def test_bad_options(tmp_path: Path) -> None:
    path = written(tmp_path, SHAREGPT)
    with pytest.raises(InputError, match="output_len: 0"):
        open_requests(path, output_len=0)
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(InputError, match="UTF-8"):
        open_requests(path)
