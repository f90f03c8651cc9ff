"""Expert arithmetic, layouts and checksums: NumPy against plain Python, CUDA against NumPy."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.backend.base import X_ROWS, Tasks
from replay.backend.host import HostBackend
from replay.bank import base_image, stride, write_image
from replay.digest import checksum, row_hash
from replay.executor import groups
from replay.kernels import reference
from replay.layout import STEP, ExpertLayout, layout_for, matrix_bytes
from replay.results import verified
from traces.errors import InputError

DTYPES = ("fp32", "fp16", "bf16", "mxfp4")


def value(data: bytes, layout: ExpertLayout, matrix: int, index: int) -> float:
    """One weight, read bit by bit."""
    at = matrix * layout.plane
    if layout.dtype == "fp32":
        return struct.unpack_from("<f", data, at + 4 * index)[0]
    if layout.dtype == "fp16":
        return struct.unpack_from("<e", data, at + 2 * index)[0]
    if layout.dtype == "bf16":
        return struct.unpack("<f", b"\0\0" + data[at + 2 * index : at + 2 * index + 2])[0]
    block, i = divmod(index, 32)
    byte = data[at + 16 * block + i % 16]
    nibble = byte >> 4 if i >= 16 else byte & 15
    sign, exponent, mantissa = nibble >> 3, nibble >> 1 & 3, nibble & 1
    size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    scale = data[3 * layout.plane + matrix * layout.scales + block]
    return (-size if sign else size) * 2.0 ** (scale - 127)


def naive(data: bytes, layout: ExpertLayout, x: np.ndarray) -> list[float]:
    rows, cols = layout.n_ff, layout.n_embd

    def dot(matrix, row, width, v):
        return math.fsum(value(data, layout, matrix, row * width + j) * v[j] for j in range(width))

    hidden = []
    for r in range(rows):
        g, u = dot(0, r, cols, x), dot(1, r, cols, x)
        hidden.append(g / (1 + math.exp(-g)) * u)
    share = -(-layout.tail // cols)
    tail = data[layout.tail_at :]
    return [
        dot(2, r, rows, hidden) + sum(tail[r * share : (r + 1) * share]) / 65536
        for r in range(cols)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tail", [0, 5, 200])
def test_numpy_experts_equal_plain_python(dtype, tail):
    layout = ExpertLayout(dtype, 32, 64, matrix_bytes(dtype, 32, 64) + tail)
    data = np.zeros(layout.nbytes, np.uint8)
    write_image(data, base_image(layout, 1), layout, 0x123456789ABCDEF1)
    x = np.random.default_rng(2).uniform(-1, 1, (2, 32)).astype(np.float32)
    got = reference.expert(data, layout, x)
    want = [naive(data.tobytes(), layout, row) for row in x]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    assert np.abs(got).max() > 1e-5, "a test of zeros would pass for nothing"
    alone = reference.expert(data, layout, x[1:])
    assert (alone[0] == got[1]).all(), "a row depends on itself alone, to the bit"


@given(st.integers(1, 10**8), st.sampled_from(DTYPES), st.integers(0, 9000), st.integers(0, 9000))
def test_a_layout_has_exactly_the_bytes_asked_for(nbytes, dtype, n_embd, n_ff):
    try:
        layout = layout_for(nbytes, dtype, n_embd, n_ff)
    except InputError as err:
        assert nbytes < matrix_bytes(dtype, STEP[dtype], STEP[dtype])
        assert "\n" not in str(err)
        return
    assert layout.nbytes == nbytes
    assert layout.tail >= 0
    assert 3 * (layout.plane + layout.scales) == matrix_bytes(dtype, layout.n_embd, layout.n_ff)
    assert layout.n_embd % STEP[dtype] == layout.n_ff % STEP[dtype] == 0
    assert layout.plane % 16 == 0


def test_gpt_oss_keeps_its_own_shape():
    from uvmsim.machine.model import Model

    m = Model.load("gpt-oss-20b")
    layout = layout_for(m.expert_bytes[0], "mxfp4", m.n_embd, m.n_ff_expert)
    assert (layout.n_embd, layout.n_ff) == (2880, 2880)
    assert layout.tail == 3 * 2880 * 4, "the biases"


@given(st.binary(max_size=70), st.integers(0, 3))
def test_the_checksum_is_the_sum_of_mixed_words(data, offset):
    padded = data + bytes(-len(data) % 4)
    want = 0
    for i in range(len(padded) // 4):
        word = int.from_bytes(padded[4 * i : 4 * i + 4], "little")
        z = (word ^ (i * 0x9E3779B1 & 0xFFFFFFFF)) * 0x9E3779B97F4A7C15 % 2**64
        want += z ^ (z >> 29)
    array = np.frombuffer(bytes(offset) + data, np.uint8)[offset:]
    assert checksum(array) == want % 2**64


def test_the_checksum_sees_moved_bytes_and_long_data():
    data = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8)
    swapped = data.copy()
    swapped[[0, 4]] = swapped[[4, 0]]
    one = data.copy()
    one[-1] ^= 1
    assert len({checksum(data), checksum(swapped), checksum(one)}) == 3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(50, 120))
def test_groups_cover_a_wave_within_the_limits(counts, rows):
    found = groups(counts, rows)
    assert [i for at, n in found for i in range(at, at + n)] == list(range(len(counts)))
    assert all(n <= 64 and (n == 1 or sum(counts[at : at + n]) <= rows) for at, n in found)


def test_tasks_lie_in_memory_as_the_kernels_struct():
    t = Tasks.empty()
    assert t.first_row.ctypes.data == t.address + 512
    assert t.tokens.ctypes.data == t.address + 768
    assert t.x_first.ctypes.data == t.address + 1024


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_of_an_image_bank_stay_small(dtype):
    layout = layout_for(50_000, dtype)
    data = np.zeros(layout.nbytes, np.uint8)
    write_image(data, base_image(layout, 0), layout, 2**64 - 1)
    for m in reference.matrices(data, layout):
        assert np.isfinite(m).all()
        assert 0.001 < np.abs(m).mean() < 0.05


# ---- on the GPU ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card():
    try:
        from replay.backend.cuda import CudaBackend

        backend = CudaBackend()
        backend.open()
    except InputError as err:
        pytest.skip(f"no GPU: {err}")
    yield backend
    backend.close()


def loaded(backend, layout, seed):
    """An expert's bytes in device memory, and on the host."""
    host = backend.host(stride(layout.nbytes), "expert")
    data = host.array[: layout.nbytes]
    write_image(data, base_image(layout, seed), layout, 0x5DEECE66D * (seed + 1))
    memory = backend.device(stride(layout.nbytes), "expert")
    backend.copy_in(memory.ptr, host.ptr, layout.nbytes, 1)
    backend.synchronise()
    return memory, data


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_embd", "n_ff", "tail"), [(32, 64, 0), (2880, 2880, 34560), (512, 96, 7)]
)
def test_cuda_experts_equal_numpy(card, dtype, n_embd, n_ff, tail):
    layout = ExpertLayout(dtype, n_embd, n_ff, matrix_bytes(dtype, n_embd, n_ff) + tail)
    x = np.random.default_rng(3).uniform(-1, 1, (X_ROWS, n_embd)).astype(np.float32)
    card.prepare([layout], x, 64, 16)
    experts = [loaded(card, layout, s) for s in range(2)]
    t = Tasks.empty()
    per_row: dict[tuple[int, int], int] = {}
    for counts in ((1, 1), (2, 1), (3, 8), (20, 5)):
        t.weights[:2] = [m.ptr for m, _ in experts]
        t.tokens[:2] = counts
        t.first_row[:2] = (0, counts[0])
        t.x_first[:2] = (0, 3)
        card.clear_hashes()
        card.experts(layout, t, 2, 5)
        out = card.outputs(layout, sum(counts))
        sums = card.hashes(7)
        for i, (_, data) in enumerate(experts):
            first = int(t.first_row[i])
            rows = [(int(t.x_first[i]) + j) % X_ROWS for j in range(counts[i])]
            got = out[first : first + counts[i]]
            want = reference.expert(data, layout, x[rows[:X_ROWS]])
            scale = np.abs(want).max()
            np.testing.assert_allclose(got[: len(want)], want, rtol=1e-4, atol=2e-5 * scale)
            total = 0
            for row, y in zip(rows, got, strict=True):
                h = row_hash(y)
                assert per_row.setdefault((i, row), h) == h, "bits depend on the batch"
                total += h
            assert int(sums[5 + i]) == total % 2**64
    for m, _ in experts:
        card.release(m)


@pytest.mark.gpu
def test_cuda_checksums_equal_numpy(card):
    for n in (1, 3, 4, 1000, 13_253_760):
        layout_bytes = np.random.default_rng(n).integers(0, 256, n, np.uint8)
        host = card.host(n, "bytes")
        host.array[:] = layout_bytes
        assert card.checksums([host.ptr], [n])[0] == checksum(layout_bytes)
        card.release(host)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["resident", "stream", "expert-cache", "zero-copy", "uvm"])
def test_a_cuda_run_is_verified(mode):
    from routing import generate

    from replay.backend.cuda import CudaBackend
    from replay.session import How, Session
    from uvmsim.studies.simulate import simulate

    case = generate(3, decode=12)
    job = case.job("lru+previous-token" if mode in ("expert-cache", "uvm") else None, slots=6,
                   write_back=mode != "uvm")  # fmt: skip
    backend = CudaBackend()
    try:
        with Session(backend, How(dtype="fp16")) as session:
            run = session.run(job, mode)
    except InputError as err:
        if "no CUDA device" in str(err) or "needs CuPy" in str(err):
            pytest.skip(str(err))
        raise
    assert verified(run), run.problems
    if mode != "uvm":
        want = simulate(job, mode).to_json()
        assert run.to_json()["hits"] == want["hits"]
        assert run.to_json()["bytes_h2d"] == want["bytes_h2d"]


def test_the_host_backend_agrees_with_itself_in_any_batch():
    layout = layout_for(2000, "fp32")
    x = np.random.default_rng(3).uniform(-1, 1, (X_ROWS, layout.n_embd)).astype(np.float32)
    backend = HostBackend()
    backend.prepare([layout], x, 40, 4)
    memory, data = loaded(backend, layout, 0)
    t = Tasks.empty()
    t.weights[0], t.tokens[0], t.x_first[0] = memory.ptr, 20, 3
    backend.experts(layout, t, 1, 2)
    rows = reference.expert(data, layout, x)
    want = sum(row_hash(rows[(3 + j) % X_ROWS]) for j in range(20)) % 2**64
    assert int(backend.hashes(3)[2]) == want
    assert (backend.outputs(layout, 20)[9] == rows[(3 + 9) % X_ROWS]).all()
