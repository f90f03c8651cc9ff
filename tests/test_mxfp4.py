"""MXFP4 in integers: compiled vector code against its own Python, bit for bit, and against floats."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.kernels.reference import E2M1
from replay.mxfp4 import BLOCK, TWICE, product, quantise, unpack
from traces.jit import compiled


@compiled()
def _compiled(data, at, scales_at, whole, by, x, x_by):  # type: ignore[no-untyped-def]
    unpack(data, at, scales_at, whole, by)
    return product(whole, by, x, x_by)


def row(blocks: int, seed: int):
    """A row's bytes, somewhere in others."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(0, 40))
    scales_at = at + blocks * BLOCK // 2 + int(rng.integers(0, 9))
    data = rng.integers(0, 256, scales_at + blocks + 5, np.uint8)
    data[scales_at : scales_at + blocks] = rng.integers(100, 140, blocks)
    return data, at, scales_at


def integers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = np.empty(len(values), np.int16)
    by = np.empty(len(values) // BLOCK, np.float32)
    quantise(values, whole, by)
    return whole, by


def floats(data: np.ndarray, at: int, scales_at: int, blocks: int) -> np.ndarray:
    """The row's weights, one by one."""
    out = []
    for b in range(blocks):
        scale = 2.0 ** (int(data[scales_at + b]) - 127)
        q = data[at + 16 * b : at + 16 * b + 16].tolist()
        out += [float(E2M1[c & 15]) * scale for c in q] + [float(E2M1[c >> 4]) * scale for c in q]
    return np.array(out)


def test_twice_is_twice():
    assert TWICE.tolist() == (2 * E2M1).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_compiled_is_what_its_python_says(blocks, seed):
    data, at, scales_at = row(blocks, seed)
    x = np.random.default_rng(seed).normal(0, 3, BLOCK * blocks).astype(np.float32)
    whole, by = integers(x)
    same, same_by = np.empty_like(whole), np.empty_like(by)
    quantise.py_func(x, same, same_by)
    assert (whole.tobytes(), by.tobytes()) == (same.tobytes(), same_by.tobytes())

    mine = [np.zeros(BLOCK * blocks, np.int16), np.zeros(blocks, np.float32)]
    got = _compiled(data, at, scales_at, *mine, whole, by)
    wanted = [np.zeros(BLOCK * blocks, np.int16), np.zeros(blocks, np.float32)]
    unpack(data, at, scales_at, *wanted)
    assert [a.tobytes() for a in mine] == [a.tobytes() for a in wanted]
    assert np.float32(got).tobytes() == product(*wanted, whole, by).tobytes()

    weights = floats(data, at, scales_at, blocks)
    assert (mine[0] * np.repeat(mine[1], BLOCK).astype(np.float64) / 2 == weights).all()
    # An activation is off by 2**-16 of its block's largest, sums of floats by their roundings.
    off = np.abs(x).reshape(-1, BLOCK).max(axis=1) * 2.0**-16
    room = (np.abs(weights).reshape(-1, BLOCK).sum(axis=1) * off).sum()
    room += np.abs(weights * x).sum() * (blocks + 8) * 2.0**-24
    assert abs(float(got) - weights @ x.astype(np.float64)) <= room * 1.01


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=BLOCK, max_size=BLOCK))
def test_activations_are_rounded_to_16_bits(values):
    x = np.array(values, np.float32)
    whole, by = integers(x)
    most = np.abs(x).max()
    assert np.abs(whole.astype(int)).max() == (32767 if most >= 1e-30 else 0)
    back = whole.astype(np.float64) * 2 * float(by[0])
    assert np.abs(back - x).max() <= most * 2.0**-16 * 1.01 + 1e-30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 13, 31])
def test_what_is_not_finite_shows(bad, at):
    x = np.ones(2 * BLOCK, np.float32)
    x[BLOCK + at] = bad
    whole, by = integers(x)
    data = np.full(2 * 17, 0x22, np.uint8)
    data[32:] = 127
    mine = np.empty(2 * BLOCK, np.int16), np.empty(2, np.float32)
    assert np.isfinite(by).tolist() == [True, False]
    assert not np.isfinite(_compiled(data, 0, 32, *mine, whole, by))


def test_bits_are_the_same_without_vector_instructions_or_compiler():
    """The oldest processor that Numba compiles for here, and no compiler at all."""
    code = (
        "from test_mxfp4 import _compiled, integers, row\n"
        "import numpy as np\n"
        "data, at, scales_at = row(9, 1)\n"
        "x = integers(np.random.default_rng(1).normal(0, 3, 288).astype(np.float32))\n"
        "mine = np.empty(288, np.int16), np.empty(9, np.float32)\n"
        "print(np.float32(_compiled(data, at, scales_at, *mine, *x)).tobytes().hex())"
    )
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(here.parent), str(here)))}
    said = set()
    old = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    for more in ({}, old, {"NUMBA_DISABLE_JIT": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said.add(done.stdout)
    assert len(said) == 1
