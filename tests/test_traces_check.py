"""Every kind of damage that `trace check` knows is planted once and found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from traces_naive import decode_trace, make_meta, random_ids

from traces import open_routing
from traces.importers.dump import import_routing
from traces.routing import RoutingTrace
from traces.routing.check import CHECKS, Finding, check
from traces.routing.check_sequences import loop_period

L, N, K = 3, 16, 4


def sequence(seed: int, t: int = 40) -> np.ndarray:
    return random_ids(np.random.default_rng(seed), t, L, N, K)


def good(**kw: str) -> RoutingTrace:
    return decode_trace([sequence(1), sequence(2)], N, **({"ids_order": "ranked"} | kw))


def edited(t: RoutingTrace, **columns: np.ndarray) -> RoutingTrace:
    return RoutingTrace(dict(t.columns) | columns, t.meta)


def found(t: RoutingTrace) -> dict[str, Finding]:
    return {f.code: f for f in check(t)}


def test_a_clean_trace_has_no_findings() -> None:
    assert check(good()) == []


def test_incomplete() -> None:
    t = good()
    f = found(RoutingTrace(t.columns, t.meta, complete=False))["incomplete"]
    assert f.severity == "warning"


def test_hash_mismatch(tmp_path: Path) -> None:
    t = good()
    t.save(tmp_path / "t.arrow")
    data = bytearray((tmp_path / "t.arrow").read_bytes())
    at = data.index(t.experts.tobytes()[:64])
    data[at] ^= 1
    (tmp_path / "t.arrow").write_bytes(data)
    assert found(open_routing(tmp_path / "t.arrow"))["hash-mismatch"].severity == "error"


@pytest.mark.parametrize("value", [N, 999, -5])
def test_expert_out_of_range(value: int) -> None:
    ids = good().experts.copy()
    ids[7, 2] = value
    f = found(edited(good(), experts=ids))["expert-out-of-range"]
    assert (f.severity, f.count) == ("error", 1)
    assert f.first == {"row": 7, "seq": 0, "pos": 2, "layer": 1, "step": 2}


def test_repeated_ids() -> None:
    ids = good().experts.copy()
    ids[10, 3] = ids[10, 0]
    f = found(edited(good(), experts=ids))["repeated-ids"]
    assert (f.severity, f.count, f.first["row"]) == ("error", 1, 10)


def test_missing_rows_are_counted_and_nothing_else() -> None:
    ids = good().experts.copy()
    ids[[3, 9, 30]] = -1
    t = found(edited(good(), experts=ids))
    assert set(t) == {"missing-rows"}
    assert (t["missing-rows"].severity, t["missing-rows"].count) == ("note", 3)


def test_missing_layers() -> None:
    t = good()
    t = t.take(np.flatnonzero(t.layer != 1))
    f = found(t)["missing-layers"]
    assert (f.severity, f.count, f.first) == ("error", 1, {"layer": 1})


def test_unknown_layers() -> None:
    t = good()
    assert found(edited(t, layer=(t.layer + 1).astype(np.int16)))["unknown-layers"].count == 1


def test_missing_token_layers() -> None:
    t = good()
    f = found(t.take(np.delete(np.arange(t.n_rows), 4)))["missing-token-layers"]
    assert (f.count, f.first["pos"], f.first["layer"]) == (1, 1, 1)


def test_repeated_rows() -> None:
    t = good()
    rows = np.sort(np.append(np.arange(t.n_rows), 5))
    f = found(t.take(rows))["repeated-rows"]
    assert (f.severity, f.count, f.first["row"]) == ("error", 1, 6)


def test_steps_out_of_order() -> None:
    t = good()
    rows = np.arange(t.n_rows).reshape(-1, L)
    rows[[4, 5]] = rows[[5, 4]]
    assert found(t.take(rows.reshape(-1)))["steps-out-of-order"].first["row"] == 5 * L


def test_layers_out_of_order() -> None:
    t = good()
    rows = np.arange(t.n_rows)
    rows[[6, 7]] = rows[[7, 6]]
    assert found(t.take(rows))["layers-out-of-order"].count == 1


def test_step_written_token_by_token() -> None:
    """A prefill whose layers are in pieces: they belong together."""
    t = good()
    step = t.step.copy()
    step[: 4 * L] = 0
    f = found(edited(t, step=step))["layers-out-of-order"]
    assert (f.severity, f.count, f.first["row"]) == ("error", 3, L)


def test_bad_values() -> None:
    pos = good().pos.copy()
    pos[5] = -1
    assert found(edited(good(), pos=pos))["bad-value"].first["row"] == 5
    weights = np.full((good().n_rows, K), 0.25, np.float32)
    weights[8, 1] = np.nan
    assert found(edited(good(), weights=weights))["bad-weights"].first["row"] == 8


def test_sorted_where_ranks_are_claimed() -> None:
    t = good()
    t = edited(t, experts=np.sort(t.experts, axis=1))
    f = found(t)["sorted-not-ranked"]
    assert (f.severity, f.count) == ("error", t.n_rows)
    assert check(RoutingTrace(t.columns, replace(t.meta, ids_order="sorted"))) == []


def test_not_sorted() -> None:
    t = good(ids_order="sorted")
    assert found(t)["not-sorted"].severity == "error"


def test_weights_against_ranks() -> None:
    weights = np.tile(np.array([0.4, 0.3, 0.2, 0.1], np.float32), (good().n_rows, 1))
    assert check(edited(good(), weights=weights)) == []
    weights[3] = weights[3][::-1]
    assert found(edited(good(), weights=weights))["weights-against-ranks"].count == 1


def test_dummy_rows() -> None:
    s = sequence(1)
    s[10:18] = s[10]
    f = found(decode_trace([s], N))["dummy-rows"]
    assert (f.severity, f.count, f.first["pos"]) == ("error", 8, 10)
    s = sequence(1)
    s[10:17] = s[10]  # seven may be chance, or a repeated token
    assert "dummy-rows" not in found(decode_trace([s], N))


def test_interleaved_sequences() -> None:
    t = good()
    pos = np.repeat(np.where(np.arange(40) % 2, 500 + np.arange(40) // 2, np.arange(40) // 2), L)
    f = found(edited(t, pos=np.concatenate([pos, pos]).astype(np.int32)))["interleaved-sequences"]
    assert f.severity == "error" and f.count > 60 and f.first["seq"] == 0


def test_position_gaps() -> None:
    t = good()
    pos = t.pos + np.where(t.pos > 20, 7, 0).astype(np.int32)
    f = found(edited(t, pos=pos))["position-gaps"]
    assert (f.severity, f.count, f.first["pos"]) == ("warning", 2, 28)


def test_mixed_steps_and_alternating_sequences() -> None:
    t = good()
    order = np.argsort(t.pos, kind="stable")  # both sequences go on by turns
    mixed = t.take(order)
    step = np.repeat(np.arange(80), L).astype(np.int32)
    rows = np.arange(240).reshape(40, 2, L).reshape(-1)
    turns = edited(mixed.take(rows), step=step)
    turns = edited(
        turns,
        seq=np.tile(np.repeat([0, 1], L), 40).astype(np.int32),
        layer=np.tile(np.arange(L), 80).astype(np.int16),
    )
    f = found(turns)
    assert f["alternating-sequences"].severity == "warning"
    together = edited(mixed, step=mixed.pos)
    layer_first = np.lexsort((together.seq, together.layer, together.step))
    f = found(together.take(layer_first))
    assert (f["mixed-steps"].severity, f["mixed-steps"].count) == ("note", 40)
    assert "alternating-sequences" not in f


def test_duplicated_sequences() -> None:
    f = found(decode_trace([sequence(1), sequence(2), sequence(1)], N))["duplicated-sequences"]
    assert (f.severity, f.count, f.first["seq"]) == ("warning", 1, 2)


@pytest.mark.parametrize("period", [1, 7, 30])
def test_loops(period: int) -> None:
    rng = np.random.default_rng(3)
    s = sequence(5, 200)
    for t in range(80, 200):
        s[t] = s[t - period]
    swap = rng.random((200, L)) < 0.1  # contexts differ, so routing does not repeat exactly
    s[swap] = sequence(6, 200)[swap]
    t = decode_trace([sequence(4, 200), s], N)
    f = found(t)["loops"]
    assert (f.severity, f.count, f.first["seq"]) == ("warning", 1, 1)
    assert loop_period(np.sort(s, axis=2)[:, :2]) == period


def test_each_finding_says_what_to_do() -> None:
    t = good()
    for check_ in CHECKS:
        for f in check_(edited(t, experts=np.sort(t.experts, axis=1) + 14)):
            assert f.advice and f.message and f.severity in ("error", "warning", "note")


def test_empty_metadata_does_not_stop_it() -> None:
    t = good()
    assert check(RoutingTrace(t.columns, make_meta(L, N, K))) == []


@pytest.mark.shared_data
def test_real_traces_are_clean_but_for_loops(shared_data: Path) -> None:
    r = shared_data / "routing"
    for name in ("olmoe-1b-7b/trace_olmoe_299.jsonl", "glm-4.5-air/glm45air_routing.jsonl"):
        assert check(import_routing(r / name)) == []
    assert set(found(import_routing(r / "gpt-oss-20b" / "gpqa_main.npz"))) == {"loops"}
