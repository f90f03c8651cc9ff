"""Columns of predictors in routing traces: kept, checked, measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_naive import decode_trace, random_ids

from traces.commands.trace import trace as command
from traces.errors import InputError
from traces.export.routing import export_routing
from traces.files.schema import PREDICTORS
from traces.routing import RoutingTrace, RoutingWriter, open_routing
from traces.routing.bounds import check_values
from traces.routing.check import check
from traces.routing.columns import GUESSES
from traces.routing.recall import AHEAD, recall
from traces.synth.whole import shuffle

L, N, K = 4, 16, 3
W = 2 * K


def with_guesses(t: RoutingTrace, seed: int = 0) -> RoutingTrace:
    """Random guesses in every row that has a layer to guess about; some rows left out."""
    rng = np.random.default_rng(seed)
    columns = dict(t.columns)
    for name, ahead in AHEAD.items():
        none = (t.layer >= L - ahead) | (rng.random(t.n_rows) < 0.1)
        ids = np.argsort(rng.random((t.n_rows, N)), axis=1)[:, :W].astype(np.int16)
        scores = -np.sort(-rng.standard_normal((t.n_rows, W)), axis=1).astype(np.float16)
        ids[none], scores[none] = -1, np.nan
        columns |= {f"{name}_ids": ids, f"{name}_scores": scores}
    return RoutingTrace(columns, t.meta, path=t.path)


def good(seed: int = 1, tokens: tuple[int, ...] = (20, 9)) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    return with_guesses(decode_trace([random_ids(rng, n, L, N, K) for n in tokens], N), seed)


def edited(column: str, value: Any, at: Any) -> RoutingTrace:
    t = good()
    changed = t.columns[column].copy()
    changed[at] = value
    return RoutingTrace(t.columns | {column: changed}, t.meta)


def equal(a: RoutingTrace, b: RoutingTrace) -> bool:
    return a.columns.keys() == b.columns.keys() and all(
        np.array_equal(a.columns[n], b.columns[n], equal_nan=a.columns[n].dtype.kind == "f")
        for n in a.columns
    )


def test_files_keep_them(tmp_path: Path) -> None:
    t = good()
    t.save(tmp_path / "t.arrow")
    back = open_routing(tmp_path / "t.arrow")
    assert equal(t, back)
    assert back.predictions.keys() == PREDICTORS.keys()
    assert back.predictions["pre"].ids.dtype == np.int16
    assert back.predictions["pre"].scores.dtype == np.float16
    assert back.recorded_sha256 == back.sha256 == t.sha256
    export_routing(back, tmp_path / "t.parquet")
    assert equal(t, open_routing(tmp_path / "t.parquet"))
    column = pa.ipc.open_file(tmp_path / "t.arrow").read_all()["next2_ids"]
    assert column.null_count == (t.predictions["next2"].ids[:, 0] < 0).sum() > 0
    assert check(back) == []


def test_the_version_is_what_the_columns_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of version 1 know a time, and neither durations nor guesses."""
    guessed = good()
    plain = RoutingTrace(
        {n: c for n, c in guessed.columns.items() if n not in GUESSES}, guessed.meta
    )
    time = {"time_ns": plain.step.astype(np.int64) * 10}
    timed = RoutingTrace(plain.columns | time, plain.meta)
    lasting = RoutingTrace(timed.columns | {"duration_ns": np.full(plain.n_rows, 9)}, plain.meta)
    both = RoutingTrace(lasting.columns | dict(guessed.columns), plain.meta)
    for i, (t, version) in enumerate(((plain, 1), (timed, 1), (lasting, 2), (both, 2))):
        path = tmp_path / f"{i}.arrow"
        t.save(path)
        assert json.loads(pa.ipc.open_file(path).schema.metadata[b"uvmsim"])["version"] == version
        back = open_routing(path)
        assert equal(t, back) and back.sha256 == back.recorded_sha256
        assert check(back) == []
        export_routing(back, path.with_suffix(".parquet"))
        assert equal(t, open_routing(path.with_suffix(".parquet")))
    monkeypatch.setattr("traces.files.schema.ROUTING_VERSION", 1)  # a reader of version 1
    for i in (0, 1):
        open_routing(tmp_path / f"{i}.arrow")
    for i in (2, 3):
        with pytest.raises(InputError, match="written by a newer uvmsim"):
            open_routing(tmp_path / f"{i}.arrow")


def test_parts_and_shuffles_keep_them() -> None:
    t = good()
    part = t.head(5)
    assert equal(part, t.take(np.arange(5 * L)))
    mixed = shuffle(t, 0)
    row = {tuple(r): i for i, r in enumerate(t.predictions["next1"].ids.tolist()) if r[0] >= 0}
    moved = 0
    for i, guess in enumerate(mixed.predictions["next1"].ids.tolist()):
        if guess[0] >= 0:
            source = row[tuple(guess)]
            assert (mixed.experts[i] == t.experts[source]).all()
            assert mixed.layer[i] == t.layer[source]
            moved += source != i
    assert moved > 10
    found, before = recall(mixed)["pre"], recall(t)["pre"]
    assert found["at_2k"] == pytest.approx(before["at_2k"])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".npz"])
def test_formats_that_cannot_hold_them_say_so(tmp_path: Path, ending: str) -> None:
    t = good()
    times = dict.fromkeys(("time_ns", "duration_ns"), t.step.astype(np.int64))
    told = export_routing(RoutingTrace(t.columns | times, t.meta), tmp_path / f"t{ending}")["notes"]
    assert any("next1_ids, next1_scores" in note for note in told)
    assert any("time_ns, duration_ns" in note for note in told)


def test_writer_takes_parts_and_refuses_others(tmp_path: Path) -> None:
    t = good()
    row = {"seq": 0, "pos": 0, "step": 0, "phase": 1, "layer": 0, "experts": t.experts[:2]}
    with RoutingWriter(tmp_path / "t.arrow", t.meta, predictors=["pre"]) as w:
        w.append(**row)
        w.append(**row | {"pos": 1}, pre_ids=np.arange(W)[None].repeat(2, 0))
        with pytest.raises(ValueError, match="next1_ids given to a writer"):
            w.append(**row, next1_ids=np.zeros((2, W)))
        with pytest.raises(ValueError, match="no column 'later_ids'"):
            w.append(**row, later_ids=np.zeros((2, W)))
    guess = open_routing(tmp_path / "t.arrow").predictions["pre"]
    assert guess.ids.tolist() == [[-1] * W] * 2 + [list(range(W))] * 2
    assert np.isnan(guess.scores).all()


def test_rows_are_never_wider_than_the_layer(tmp_path: Path) -> None:
    t = decode_trace([random_ids(np.random.default_rng(0), 4, 2, 4, 3)], 4)
    with RoutingWriter(tmp_path / "t.arrow", t.meta, predictors=["pre"]) as w:
        w.append(**t.columns, pre_ids=np.tile(np.arange(4), (8, 1)), pre_scores=np.zeros((8, 4)))
    found = recall(open_routing(tmp_path / "t.arrow"))["pre"]
    assert found["at_2k"] == 1.0


@pytest.mark.parametrize("value", [N, -2, 32767])
@pytest.mark.parametrize("name", PREDICTORS)
def test_an_expert_out_of_range_is_refused(tmp_path: Path, name: str, value: int) -> None:
    t = edited(f"{name}_ids", value, (4, 2))
    t.save(tmp_path / "t.arrow")
    with pytest.raises(InputError, match=rf"t\.arrow, row 4: {name}_ids has expert {value}") as e:
        open_routing(tmp_path / "t.arrow")
    assert "\n" not in str(e.value)
    (found,) = check(open_routing(tmp_path / "t.arrow", checked=False))
    assert (found.code, found.severity, found.count) == ("bad-guesses", "error", 1)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("pre_ids", np.zeros((29 * L, W - 1), np.int16), "column 'pre_ids' has shape"),
        ("pre_scores", np.zeros((29 * L, K), np.float16), "column 'pre_scores' has shape"),
        ("next1_ids", np.zeros((29 * L, W)), "column 'next1_ids' does not hold whole numbers"),
    ],
)
def test_columns_made_in_memory_fit(column: str, values: np.ndarray, words: str) -> None:
    t = good()
    with pytest.raises(InputError, match=words):
        check_values(RoutingTrace(t.columns | {column: values}, t.meta))


def rewritten(t: RoutingTrace, path: Path, change: Any) -> None:
    """The trace's file, its table changed."""
    t.save(path)
    table = change(pa.ipc.open_file(path).read_all())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_damaged_columns_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    rewritten(good(), path, lambda table: table.drop_columns(["pre_scores"]))
    with pytest.raises(InputError, match="'pre_scores' is missing beside its other half") as e:
        open_routing(path)
    assert "\n" not in str(e.value)

    def narrower(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("pre_ids")
        ids = pa.array([[0] * K] * table.num_rows, pa.list_(pa.int16(), K))
        return table.set_column(at, "pre_ids", ids)

    rewritten(good(), path, narrower)
    with pytest.raises(InputError, match="column 'pre_ids' is fixed_size_list"):
        open_routing(path)


def test_check_finds_what_cannot_be() -> None:
    def found(column: str, value: Any, at: Any) -> list[str]:
        return [f.code for f in check(edited(column, value, at)) if f.severity == "error"]

    row = int(np.flatnonzero(good().predictions["pre"].ids[:, 0] >= 0)[3])
    assert found("pre_ids", 5, (row, slice(0, 2))) == ["bad-guesses"]
    assert found("pre_ids", -1, (row, 1)) == ["bad-guesses"]
    assert found("pre_scores", np.nan, (row, 1)) == ["bad-guess-scores"]
    assert found("pre_scores", np.inf, (row, 0)) == ["bad-guess-scores"]
    assert found("pre_scores", 9.0, (row, W - 1)) == ["bad-guess-scores"]
    assert found("pre_scores", -np.inf, (row, slice(W - 2, W))) == []  # ruled out, both
    t = good()
    for name, layer in (("next1", L - 1), ("next2", L - 2)):
        last = int(np.argmax(t.layer == layer))
        assert found(f"{name}_ids", np.arange(W), last)[-1] == "guesses-of-no-layer"


def naive_recall(t: RoutingTrace, name: str, phase: int | None) -> dict[str, float | None]:
    """Row by row, with sets."""
    chosen = {(int(s), int(p), int(la)): set(e.tolist())
              for s, p, la, e in zip(t.seq, t.pos, t.layer, t.experts, strict=True)}  # fmt: skip
    by_layer: dict[int, list[tuple[float, float]]] = {}
    fresh: dict[int, list[bool]] = {}
    for i in range(t.n_rows):
        key = (int(t.seq[i]), int(t.pos[i]), int(t.layer[i]) + AHEAD[name])
        guess = t.predictions[name].ids[i].tolist()
        if -1 in guess or key not in chosen or -1 in chosen[key]:
            continue
        if phase is not None and t.phase[i] != phase:
            continue
        actual = chosen[key]
        of = [len(actual & set(guess[:n])) / K for n in (K, W)]
        by_layer.setdefault(key[2], []).append((of[0], of[1]))
        old = chosen.get((key[0], key[1] - 1, key[2]))
        if old is not None and -1 not in old:
            fresh.setdefault(key[2], []).extend(e in guess for e in actual - old)
    means = [np.mean(v, axis=0) for v in by_layer.values()]
    new = [np.mean(v) for v in fresh.values() if v]
    return {
        "at_k": float(np.mean([m[0] for m in means])) if means else None,
        "at_2k": float(np.mean([m[1] for m in means])) if means else None,
        "new_at_2k": float(np.mean(new)) if new else None,
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_recall_equals_sets_row_by_row(seed: int, tokens: list[int]) -> None:
    t = good(seed, tuple(tokens))
    rng = np.random.default_rng(seed)
    experts, phase = t.experts.copy(), t.phase.copy()
    experts[rng.random(t.n_rows) < 0.1] = -1
    phase[t.pos < 3] = 0
    t = RoutingTrace(t.columns | {"experts": experts, "phase": phase}, t.meta)
    for which in (None, 0, 1):
        counted = None if which is None else t.dense.phase == which
        for name, found in recall(t, counted).items():
            expected = naive_recall(t, name, which)
            for key, value in expected.items():
                assert found[key] == (None if value is None else pytest.approx(value))


def test_recall_of_perfect_and_of_wrong_guesses() -> None:
    t = good()
    order = [np.lexsort((t.pos, t.seq, t.layer == la)) for la in range(L)]
    ids = np.full((t.n_rows, W), -1, np.int16)
    for la in range(L - 1):
        here, there = (o[-len(t.pos) // L :] for o in (order[la], order[la + 1]))
        for i, j in zip(here, there, strict=True):
            rest = [e for e in range(N) if e not in t.experts[j]]
            ids[i] = [*t.experts[j], *rest[: W - K]]
    scores = np.where(ids < 0, np.nan, 0).astype(np.float16)
    right = RoutingTrace(t.columns | {"next1_ids": ids, "next1_scores": scores}, t.meta)
    found = recall(right)["next1"]
    assert (found["at_k"], found["at_2k"], found["new_at_2k"]) == (1.0, 1.0, 1.0)
    assert found["guesses"] == 29 * (L - 1)
    assert list(found["at_2k_by_layer"]) == ["1", "2", "3"]
    turned = np.where(ids < 0, ids, np.roll(ids, W - K, axis=1)).astype(np.int16)
    wrong = RoutingTrace(t.columns | {"next1_ids": turned, "next1_scores": scores}, t.meta)
    found = recall(wrong)["next1"]
    assert (found["at_k"], found["at_2k"]) == (0.0, 1.0)


def test_commands_show_recall(tmp_path: Path) -> None:
    path = str(tmp_path / "t.arrow")
    good().save(path)
    info = CliRunner().invoke(command, ["info", path]).output
    found = recall(good())["pre"]
    assert f"recall {found['at_k']:.1%} at {K}, {found['at_2k']:.1%} at {W}" in info
    told = json.loads(CliRunner().invoke(command, ["stats", "--json", path]).output)
    assert told["traces"][0]["recall"]["pre"] == found
    plain = good()
    columns = {n: c for n, c in plain.columns.items() if not n.startswith(("next", "pre_"))}
    RoutingTrace(columns, replace(plain.meta)).save(tmp_path / "p.arrow")
    side = CliRunner().invoke(command, ["stats", path, str(tmp_path / "p.arrow")]).output
    assert "Recall of a layer's experts" in side
    alone = CliRunner().invoke(command, ["stats", str(tmp_path / "p.arrow")]).output
    assert "Recall" not in alone
    told = CliRunner().invoke(command, ["check", path])
    assert told.exit_code == 0, told.output
