"""Experts computed on the CPU: against the reference, the same bits in every batch."""

from __future__ import annotations

import numpy as np
import pytest
from numba import get_num_threads

from replay.backend.base import X_ROWS
from replay.bank import base_image, stride, write_image
from replay.calibrate.cpu_kernels import cpu_expert_rows, cpu_expert_tables
from replay.cpu_experts import CpuExperts, agrees
from replay.kernels import reference
from replay.layout import layout_for


def made(dtype: str, nbytes: int = 40_000, n: int = 3):
    layout = layout_for(nbytes, dtype, 64, 96)
    step = stride(layout.nbytes)
    data = np.zeros(n * step, np.uint8)
    base = base_image(layout, 5)
    for i in range(n):
        write_image(data[i * step : i * step + layout.nbytes], base, layout, 1234567 * (i + 1))
    x = np.random.default_rng(1).uniform(-1, 1, (X_ROWS, layout.n_embd)).astype(np.float32)
    return layout, step, data, x


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "mxfp4"])
def test_results_are_the_references(dtype):
    layout, step, data, x = made(dtype)
    cpu = CpuExperts(data, x, np.zeros((32, layout.n_embd), np.float32), layout.n_ff)
    tokens, first = [1, 11, 3], [5, 7, 0]
    got = cpu.run(layout, [0, step, 2 * step], tokens, first).copy()
    row = 0
    for i, (t, f) in enumerate(zip(tokens, first, strict=True)):
        image = data[i * step : i * step + layout.nbytes]
        want = reference.expert(image, layout, x[[(f + k) % X_ROWS for k in range(t)]])
        assert agrees(got[row : row + t], want)
        assert not agrees(got[row : row + t] * 1.001, want)
        row += t
    # One by one: the same bits.
    row = 0
    for i, (t, f) in enumerate(zip(tokens, first, strict=True)):
        for k in range(t):
            alone = cpu.run(layout, [i * step], [1], [f + k])
            assert alone.tobytes() == got[row].tobytes()
            row += 1


def test_other_bytes_give_other_results():
    layout, step, data, x = made("mxfp4")
    cpu = CpuExperts(data, x, np.zeros((8, layout.n_embd), np.float32), layout.n_ff)
    one = cpu.run(layout, [0], [1], [0]).copy()
    assert not agrees(cpu.run(layout, [step], [1], [0]), one)
    data[7] ^= 0x30
    assert cpu.run(layout, [0], [1], [0]).tobytes() != one.tobytes()


def test_room_is_checked():
    layout, _, data, x = made("fp32")
    cpu = CpuExperts(data, x, np.zeros((2, layout.n_embd), np.float32), layout.n_ff)
    with pytest.raises(ValueError, match="3 rows"):
        cpu.run(layout, [0], [3], [0])


def test_calibration_reads_each_expert_in_turn_and_finds_the_speed(monkeypatch):
    read = []

    def run(self, layout, at, tokens, x_first):
        read.extend(at)
        return self.out

    monkeypatch.setattr(CpuExperts, "run", run)
    rows = cpu_expert_rows(True)
    steps = np.array(read[: len(read) // 4])  # one type's
    n = steps.max() // stride(16 * 1024) + 1
    # Always the one that was read longest ago.
    assert (steps == np.arange(len(steps)) % n * stride(16 * 1024)).all()
    assert {r["threads"] for r in rows} == {get_num_threads()}

    for r in rows:  # 2 us a wave, 4 bytes a ns, 50 operations a ns
        ops = 2 * r["params"] * r["tokens"] * r["experts"]
        r["median_ns"] = 2000 + max(r["bytes"] / 4, ops / 50 if r["tokens"] > 8 else 0)
    tables = cpu_expert_tables(rows, [])
    assert set(tables) == {"F32", "F16", "BF16", "MXFP4"}
    for found in tables.values():
        assert found["bytes_per_s"] == pytest.approx(4e9, rel=1e-6)
        assert found["flops"] == pytest.approx(50e9, rel=1e-3)
        assert found["wave_ns"] == pytest.approx(2000, abs=1)

    for r in rows:  # other programs have the cores
        r["median_ns"] = 16e6 + r["bytes"] / 1000
    for found in cpu_expert_tables(rows, [{"bytes_per_s": 3e9}, {"bytes_per_s": 2e9}]).values():
        assert found["bytes_per_s"] == 3e9
        assert found["wave_ns"] == pytest.approx(16e6, rel=0.01)
        assert found["flops"] <= 64 * 2 * 32 / 17 * 3e9 * 1.01  # an expert's bytes are read
