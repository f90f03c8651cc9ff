"""Request traces of other tools: every format comes in whole, and what is bad is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_files import AGENTIC, AZURE_2023, BURSTGPT_1, GOOD, MOONCAKE, VIDUR, lines, writer

from traces import InputError
from traces.requests import RequestTrace, open_requests
from traces.requests.formats import KNOWN

EXPECTED: dict[str, tuple[list[int] | None, list[int], list[int]]] = {
    "azure-2023": ([0, 4_314_579_000, 4_541_877_000], [374, 396, 879], [44, 109, 55]),
    "azure-2024": ([0, 7_405_000, 990_070_000], [2162, 2399, 76], [5, 6, 15]),
    "burstgpt-1": ([0, 113_000_000_000], [472, 417], [18, 276]),
    "burstgpt-2": ([0, 113_500_000_000], [472, 417], [18, 276]),
    "vidur": ([0, 1_250_000_000], [2048, 16], [32, 1]),
    "vidur-lengths": (None, [2048, 16], [32, 1]),
    "splitwise": ([0, 1_000_000], [1500, 20], [13, 500]),
    "mooncake": ([0, 3_053_000_000], [1025, 512], [52, 26]),
    "bailian": ([0, 86_000_000], [34, 16], [532, 5]),
    "llmservingsim": ([0, 7], [3, 100], [4, 1]),
    "llmservingsim-agentic": ([0, 10, 50, 57], [10, 40, 20, 30], [1, 4, 2, 3]),
}


def refused(path: Path, pattern: str, **options: Any) -> str:
    with pytest.raises(InputError, match=pattern) as e:
        open_requests(path, **options)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("form", ["unix", "dos", "bom", "named"])
def test_formats(tmp_path: Path, name: str, form: str) -> None:
    text = GOOD[name]
    if form == "dos":
        text = text.replace("\n", "\r\n")
    path = writer(tmp_path)("\ufeff" + text if form == "bom" else text)
    known = next(
        c for c in KNOWN if name in (c.name, *(f"{c.name}-{v}" for v in ("1", "2", "2023", "2024")))
    )
    t = open_requests(path, format=known.name if form == "named" else None)
    arrival, prompt, output = EXPECTED[name]
    assert (t.arrival_ns is None) if arrival is None else (t.arrival_ns.tolist() == arrival)  # type: ignore[union-attr]
    assert t.prompt.tolist() == prompt and t.output.tolist() == output
    assert t.format == known.name and t.path == str(path) and t.source
    assert t.prompt.dtype == t.output.dtype == np.int32 and t.blocks.dtype == np.int64


def test_notes_and_blocks(tmp_path: Path) -> None:
    write = writer(tmp_path)
    assert open_requests(write(BURSTGPT_1)).notes == ("1 failures (0 response tokens) left out",)
    t = open_requests(write(GOOD["mooncake"]))
    assert t.blocks.tolist() == [46, 47, 2353, 46] and t.block_lo.tolist() == [0, 3, 4]
    assert t.block_tokens == 512 and not t.notes
    assert open_requests(write(GOOD["bailian"])).block_tokens == 16
    t = open_requests(write(lines([MOONCAKE[0] | {"hash_ids": [1, 2, 3, 4, 5]}, MOONCAKE[1]])))
    assert t.blocks.tolist() == [1, 2, 3, 46] and "1 requests with more blocks" in t.notes[0]
    assert "does not wait" in open_requests(write(lines(AGENTIC))).notes[0]


def test_what_is_not_read_may_be_broken(tmp_path: Path) -> None:
    path = writer(tmp_path)(BURSTGPT_1.encode().replace(b"GPT-4", b"\xff\xfe"))
    assert len(open_requests(path)) == 2


def test_limit(tmp_path: Path) -> None:
    path = writer(tmp_path)(GOOD["mooncake"])
    t = open_requests(path, limit=1)
    assert len(t) == 1 and t.blocks.tolist() == [46, 47, 2353]
    assert len(open_requests(path, limit=99)) == 2
    refused(path, "limit: 0", limit=0)
    # What lies behind the limit is not looked at once a block of rows has enough.
    many = "".join(f"{i},5,5\n" for i in range(700_000))
    path = writer(tmp_path)(VIDUR.splitlines()[0] + "\n" + many + "oh,no,!\n")
    assert len(open_requests(path, limit=10)) == 10
    refused(path, "row 700001: num_prefill_tokens is 'no': not a number")


def test_order(tmp_path: Path) -> None:
    head, *rows = AZURE_2023.splitlines()
    path = writer(tmp_path)("\n".join([head, rows[1], rows[0], rows[2]]) + "\n")
    assert "`sort`" in refused(path, "row 2: TIMESTAMP is earlier than row 1's")
    t = open_requests(path, sort=True, limit=2)
    assert t.prompt.tolist() == [374, 396] and t.arrival_ns.tolist() == [0, 4_314_579_000]  # type: ignore[union-attr]
    assert "order of their times" in t.notes[0]
    path = writer(tmp_path)(lines(MOONCAKE[::-1]))
    refused(path, "row 2: timestamp")
    assert open_requests(path, sort=True).blocks.tolist() == [46, 47, 2353, 46]
    refused(writer(tmp_path)(lines(AGENTIC[::-1])), "row 2: arrival_time_ns")


def test_empty_requests(tmp_path: Path) -> None:
    path = writer(tmp_path)(VIDUR + "2,0,5\n3,5,0\n4,5,5\n")
    assert "skip_empty" in refused(path, "row 3: num_prefill_tokens is 0")
    t = open_requests(path, skip_empty=True)
    assert len(t) == 3 and t.notes[0].startswith("2 requests without tokens")
    path = writer(tmp_path)(lines([MOONCAKE[0] | {"output_length": 0}, MOONCAKE[1]]))
    assert open_requests(path, skip_empty=True).blocks.tolist() == [46]
    only = BURSTGPT_1.splitlines()
    refused(writer(tmp_path)("\n".join([only[0], only[2]])), "no requests in it .1 without")
    refused(writer(tmp_path)(BURSTGPT_1.replace("417", "0")), "row 3: Request tokens is 0")


AZ = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"


TABLES = [
    ("", "empty file"),
    ("\n\n", "no header"),
    ("a,b,c\n1,2,3\n", "no request trace that is known, by its columns .'a', 'b', 'c'"),
    (AZ.splitlines()[0], "no requests"),
    (AZ + "2023-11-16 18:15:47,-3,4\n", "row 2: ContextTokens is -3: less than nothing"),
    (AZ + "2023-11-16 18:15:47,3,nan\n", "row 2: GeneratedTokens is nan"),
    (AZ + "2023-11-16 18:15:47,inf,4\n", "row 2: ContextTokens is inf"),
    (AZ + "2023-11-16 18:15:47,3.5,4\n", "row 2: ContextTokens is 3.5: not a whole"),
    (AZ + "2023-11-16 18:15:47,10000001,4\n", "row 2: ContextTokens is 10000001: more than"),
    (AZ + f"2023-11-16 18:15:47,3,{'9' * 400}\n", "row 2: GeneratedTokens is"),
    (AZ + "2023-11-16 18:15:47,,4\n", "row 2: ContextTokens is missing"),
    (AZ + ",3,4\n", "row 2: TIMESTAMP is missing"),
    (AZ + "18:15:47,3,4\n", "row 2: TIMESTAMP is '18:15:47': not a date"),
    (AZ + "1700-01-01 00:00:00,3,4\n", "row 2: TIMESTAMP is '1700-.*before 1824"),
    (AZ + "2024-05-10 00:00:00+00:00,3,4\n", "row 2: TIMESTAMP .*as the rows before"),
    (AZ + "2023-11-16 18:15:47,3\n", "row 2: Expected 3 columns, got 2"),
    (AZ + "2023-11-16 18:15:47,3,4,5\n", "Expected 3 columns, got 4"),
    (AZ + "2023-11-16 18:15:47,\"3,4\n", "row 2: Expected 3 columns"),
    (AZ + "2023-11-16 18:15:47,\udcff,4\n", "row 2: ContextTokens is b'.*not text in UTF-8"),
    (VIDUR.replace("\n", ",arrived_at\n", 1), "column 'arrived_at' occurs twice"),
    (AZ.replace("GeneratedTokens", "ContextTokens"), "no request trace"),
    ("x" * 70_000, "no header line"),
    (AZ + "2023-11-16 18:15:47,3," + "4" * (9 << 20) + "\n", "longer than 4 MiB"),
    ("\x80\x04]", "a pickle, as DistServe's: never loaded"),
    ("\x1f\x8b\x08", "compressed .gzip"),
    ("PK\x03\x04", "compressed .zip"),
    ("\0\0\0\0", "no text"),
    (VIDUR + "-1,3,4\n", "row 3: arrived_at is -1.0: before time 0"),
    (VIDUR + "1e300,3,4\n", "row 3: arrived_at is 1e.300: too late"),
    (VIDUR + "nan,3,4\n", "row 3: arrived_at is nan"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), TABLES, ids=[says for _, says in TABLES])
def test_bad_tables(tmp_path: Path, text: str, says: str) -> None:
    data = (
        text.encode("latin-1")
        if text[:1] in "\x80\x1f"
        else text.encode("utf-8", "surrogateescape")
    )
    refused(writer(tmp_path)(data), says)


def line(**change: Any) -> str:
    return lines([MOONCAKE[0], MOONCAKE[1] | change])


LINES = [
    ("{}\n", "no request trace that is known"),
    ("{\n", "row 1: not valid JSON"),
    (line() + "{]\n", "row 3: not valid JSON"),
    (line() + "[1]\n", "row 3: not a JSON object"),
    (line(output_length=None), "row 2: output_length is missing"),
    (line(output_length="7"), "row 2: output_length is '7': not a number"),
    (line(output_length=True), "row 2: output_length is True"),
    (line(output_length=-1), "row 2: output_length is -1"),
    (line(output_length=1.5), "row 2: output_length is 1.5"),
    (line(output_length=10**300), "row 2: output_length is 1000.*too many digits"),
    (line(output_length=float("nan")), "row 2: output_length is nan"),
    (line(timestamp=float("inf")), "row 2: timestamp is inf"),
    (line(timestamp=-3), "row 2: timestamp is -3.0"),
    (line(timestamp=[[[]]]), "row 2: timestamp is a list of 1"),
    (line(hash_ids=7), "row 2: hash_ids is 7: not a list"),
    (line(hash_ids=[1, "x"]), "row 2: hash_ids is 'x': not a block id"),
    (line(hash_ids=[1, 1 << 63]), "row 2: hash_ids is 9223372036854775808"),
    (line(hash_ids=[1.5]), "row 2: hash_ids is 1.5"),
    (line() + '{"timestamp": ' + "[" * 100_000 + "\n", "row 3: nested too deeply"),
    (line() + '{"timestamp": ' + "9" * 5000 + "}\n", "row 3: a number of thousands"),
    (line() + "{" + " " * (9 << 20) + "}\n", "row 3 is longer than 8 MiB"),
    (line() + '{"a": "\udcff"}\n', "row 3: not text in UTF-8"),
    (lines([AGENTIC[0] | {"sub_requests": []}]), "row 1: sub_requests is a list of 0"),
    (lines([AGENTIC[0] | {"sub_requests": [1]}]), "row 1: sub_requests"),
    (lines([AGENTIC[0] | {"sub_requests": [{"tool_duration_ns": 1}, {}]}]),
         "row 1: input_toks"),
    (lines([AGENTIC[0] | {"sub_requests": [{"input_toks": 1, "output_toks": 1}] * 2}]),
     "row 1: tool_duration_ns is missing"),
    (lines([AGENTIC[0] | {"arrival_time_ns": 1.5}]), "row 1: arrival_time_ns is 1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), LINES, ids=[says for _, says in LINES])
def test_bad_lines(tmp_path: Path, text: str, says: str) -> None:
    refused(writer(tmp_path)(text.encode("utf-8", "surrogateescape")), says)


def test_bad_options(tmp_path: Path) -> None:
    write = writer(tmp_path)
    path = write(AZ)
    refused(path, "format: x: unknown; choose one of azure, ", format="x")
    refused(path, "format: mooncake is JSONL, but .* looks like CSV", format="mooncake")
    refused(path, "format: vidur has a column 'arrived_at'", format="vidur")
    refused(path, "tokenizer: .*ShareGPT", tokenizer="m.gguf")
    refused(path, "output_len: .*ShareGPT", output_len=3)
    refused(tmp_path, "is a directory")
    refused(tmp_path / "no", "no such file")
    (tmp_path / "x.pkl").write_text("anything")
    refused(tmp_path / "x.pkl", "a pickle")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=6)), max_size=5),
)
def test_broken_bytes(tmp_path_factory: Any, name: str, cuts: list[tuple[int, int, bytes]]) -> None:
    """A file with bytes changed is read, or refused in one line."""
    data = GOOD[name].encode()
    for at, gone, new in cuts:
        data = data[:at] + new + data[at + gone :]
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(data)
    try:
        open_requests(path, sort=True)
    except InputError as e:
        assert "\n" not in str(e) and str(path) in str(e)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.integers(min_value=10**40), st.lists(st.integers() | st.text(max_size=2), max_size=4),
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(("mooncake", "bailian", "llmservingsim", "llmservingsim-agentic")),
    st.data(),
)
def test_broken_values(tmp_path_factory: Any, name: str, data: st.DataObject) -> None:
    rows = [json.loads(row) for row in GOOD[name].splitlines()]
    row = data.draw(st.sampled_from(rows))
    if data.draw(st.booleans()) and "sub_requests" in row:
        row = data.draw(st.sampled_from(row["sub_requests"]))
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES)
    path = tmp_path_factory.getbasetemp() / "values"
    path.write_text(lines(rows))
    try:
        open_requests(path, sort=data.draw(st.booleans()))
    except InputError as e:
        assert "\n" not in str(e) and str(path) in str(e)


CELLS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ("", "nan", "-inf", "1e400", "0x10", " 7 ", "1_0", "9" * 300, '"', "2023-11-16 18:15:99")
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(("azure-2023", "burstgpt-2", "vidur", "splitwise")), st.data())
def test_broken_cells(tmp_path_factory: Any, name: str, data: st.DataObject) -> None:
    rows = [row.split(",") for row in GOOD[name].splitlines()]
    row = data.draw(st.sampled_from(rows[1:]))
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(CELLS)
    path = tmp_path_factory.getbasetemp() / "cells"
    path.write_text("\n".join(",".join(row) for row in rows))
    try:
        open_requests(path)
    except InputError as e:
        assert "\n" not in str(e) and str(path) in str(e)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 1500), st.integers(0, 3), st.integers(0, 5)),
        min_size=1, max_size=12,
    ),
    st.none() | st.integers(1, 14),
)  # fmt: skip
def test_against_the_slow_version(
    tmp_path_factory: Any, rows: list[tuple[int, int, int, int]], limit: int | None
) -> None:
    """Sorted, without empty ones, blocks cut to the prompt: by whole arrays as row by row."""
    dicts = [
        {"timestamp": t, "input_length": p, "output_length": o, "hash_ids": list(range(t, t + b))}
        for t, p, o, b in rows
    ]
    path = tmp_path_factory.getbasetemp() / "rows"
    path.write_text(lines(dicts))
    kept = [d for d in dicts if d["input_length"] and d["output_length"]]
    if not kept:
        refused(path, "no requests", sort=True, skip_empty=True)
        return
    kept.sort(key=lambda d: d["timestamp"])
    first = kept[0]["timestamp"]
    kept = kept[:limit]
    t = open_requests(path, sort=True, skip_empty=True, limit=limit)
    assert t.arrival_ns.tolist() == [(d["timestamp"] - first) * 10**6 for d in kept]  # type: ignore[union-attr]
    assert t.prompt.tolist() == [d["input_length"] for d in kept]
    for i, d in enumerate(kept):
        fill = -(-d["input_length"] // 512)
        assert t.blocks[t.block_lo[i] : t.block_lo[i + 1]].tolist() == d["hash_ids"][:fill]


def test_traces_made_by_hand() -> None:
    one = np.ones(2, np.int32)
    t = RequestTrace(np.array([0, 5]), one, one)
    assert t.block_lo.tolist() == [0, 0, 0] and len(t.first(1)) == 1
    for change, says in (
        ({"arrival_ns": np.array([5, 0])}, "arrives before request 0"),
        ({"arrival_ns": np.array([-1, 0])}, "before time 0"),
        ({"arrival_ns": np.array([0.0, 1.0])}, "arrival_ns is float64"),
        ({"prompt": one * 0}, "request 0 has 0 tokens of prompt"),
        ({"output": np.ones(3, np.int32)}, r"output is int32 \[3\]"),
        ({"blocks": np.array([1])}, "block_lo must rise"),
        ({"blocks": np.array([1]), "block_lo": np.array([0, 0, 1])}, "without block_tokens"),
        (
            {"blocks": np.arange(3), "block_lo": np.array([0, 0, 3]), "block_tokens": 16},
            "more blocks",
        ),
    ):
        with pytest.raises(InputError, match=says):
            replace(t, **change)
    with pytest.raises(InputError, match="at least one"):
        RequestTrace(None, one[:0], one[:0])
