"""The picture of a sweep: what it shows, in which order, and what it refuses."""

import numpy as np
import pytest

from traces.errors import InputError
from uvmsim.studies.sweep.store import Store

pytest.importorskip("matplotlib", reason="needs the plot extra")

from uvmsim.report.sweep_data import load
from uvmsim.report.sweep_plot import draw, fastest

GIB = 1 << 30


def row(policy="lru", vram=4, link=8, speed=10.0, **more) -> dict:
    base = {
        "cell": f"{policy}-{vram}-{link}-{sorted(more.items())}", "trace": "t.arrow",
        "trace_sha256": "aa", "model": "m", "hardware": "h", "expert_bytes": 10**6, "experts": 64,
        "mechanism": "expert-cache",
        "policy": policy, "vram_bytes": vram * GIB, "link_bytes_per_s": link * 10**9, "slots": 8 * vram,
        "status": "ok", "tokens": 100, "decode_tokens": 100, "decode_tokens_per_s": speed,
        "tokens_per_s": 1.0, "seed": 0,
    }  # fmt: skip
    return base | more


def dataset(path, rows):
    with Store(path) as store:
        store.add(rows)
    return path


def test_numbers_are_where_they_belong(tmp_path):
    rows = [
        row(p, v, k, v * k * f)
        for p, f in (("lru", 1), ("belady", 2))
        for v in (2, 4, 8)
        for k in (8, 16)
    ]
    grid = load(dataset(tmp_path, rows))
    assert grid.x.tolist() == [2, 4, 8]
    assert grid.y.tolist() == [8, 16]
    assert grid.speed["lru"].tolist() == [[16, 32, 64], [32, 64, 128]]
    assert (list(grid.speed), grid.real) == (["lru", "belady"], ["lru"])
    assert grid.fits_at == 8


def test_seeds_are_averaged_and_what_does_not_fit_is_told_apart(tmp_path):
    rows = [row(speed=10, seed=1), row(speed=20, seed=2), row(vram=8, speed=50)]
    rows.append(row(vram=2, status="out-of-memory", decode_tokens=None, slots=None))
    grid = load(dataset(tmp_path, rows))
    assert np.isnan(grid.speed["lru"][0, 0])
    assert grid.too_big["lru"].tolist() == [[True, False, False]]
    assert grid.speed["lru"][0, 1:].tolist() == [15, 50]


def test_sizes_given_as_slots_are_the_axis(tmp_path):
    rows = [row(slots=s, slots_asked=str(s), speed=s) for s in (8, 16)]
    rows.append(row(None, mechanism="zero-copy", slots=0, speed=3.0))
    grid = load(dataset(tmp_path, rows))
    assert grid.x_is_slots
    assert grid.x.tolist() == [8, 16]
    assert grid.speed["zero-copy"].tolist() == [[3.0, 3.0]]


def test_one_value_of_all_else_is_drawn_and_said(tmp_path):
    rows = [row(hardware=h, vram=v, speed=5) for h, v in (("a", 2), ("a", 4), ("b", 2))]
    folder = dataset(tmp_path, rows)
    grid = load(folder)
    assert grid.left_out == ["hardware a (1 of 2)"]
    assert load(folder, where=["hardware=b"]).x.tolist() == [2]
    for where, told in (("hardware=c", "hardware is one of a, b"), ("hw=a", "give COLUMN=VALUE")):
        with pytest.raises(InputError, match=told):
            load(folder, where=[where])


def test_the_fastest_is_found_and_ties_are_no_win(tmp_path):
    rows = [
        row(p, v, speed=s)
        for p, v, s in (("lru", 2, 1), ("lfu", 2, 2), ("lru", 4, 9), ("lfu", 4, 9.01))
    ]
    grid = load(dataset(tmp_path, rows))
    best, tie = fastest(grid)
    assert grid.real[best[0, 0]] == "lfu"
    assert tie.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("vrams", "links", "kind"),
    [
        ((2, 4, 8), (8, 16, 64), "maps"),
        ((2, 4, 8), (8, 16), "lines"),
        ((4,), (8, 16, 32), "lines"),
        ((4,), (8,), "lines"),
    ],
)
@pytest.mark.parametrize("name", ["p.png", "p.svg"])
def test_pictures_are_drawn_the_same_every_time(tmp_path, vrams, links, kind, name):
    rows = [
        row(p, v, k, v * k)
        for p in ("lru", "lfu", "belady", "mine.py:X")
        for v in vrams
        for k in links
    ]
    rows.append(row(None, 2, 8, mechanism="resident", status="out-of-memory", decode_tokens=None))
    folder = dataset(tmp_path / "d", rows)
    told = draw(folder, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    assert told["kind"] == kind
    draw(folder, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [name]


def test_nothing_to_draw_is_one_line(tmp_path):
    folder = dataset(tmp_path, [row(status="error")])
    with pytest.raises(InputError, match="no finished cell to draw"):
        draw(folder, tmp_path / "p.png")
    with pytest.raises(InputError, match=r"ends in \.png"):
        draw(folder, tmp_path / "p.txt")


def paged(policy="default", vram=1, speed=10.0, **more) -> dict:
    """A row of the mechanism uvm: policies of pages, no slots."""
    own = {"mechanism": "uvm", "slots": None, "slots_asked": None, "threshold": 51}
    return row(policy, vram, speed=speed, **own | more)


def test_policies_of_pages_have_no_slots_and_are_drawn(tmp_path):
    rows = [paged(p, v, speed=v * f) for p, f in (("default", 1), ("other", 2)) for v in (1, 2)]
    folder = dataset(tmp_path / "d", rows)
    grid = load(folder)
    assert (grid.x_is, grid.x.tolist(), grid.fits_at) == ("memory", [1, 2], None)
    assert {k: z.tolist() for k, z in grid.speed.items()} == {
        "default": [[1, 2]], "other": [[2, 4]],
    }  # fmt: skip
    assert draw(folder, tmp_path / "p.png")["kind"] == "lines"


def test_pages_beside_pools_are_a_level_line_of_one_memory_size(tmp_path):
    pools = [row(slots=s, slots_asked=str(s), vram=v, speed=s) for s in (8, 16) for v in (1, 2)]
    grid = load(dataset(tmp_path, [*pools, paged(vram=1, speed=3.0), paged(vram=2, speed=5.0)]))
    assert grid.x_is_slots and grid.x.tolist() == [8, 16]
    assert grid.speed["default"].tolist() == [[3.0, 3.0]]
    assert grid.left_out == [f"vram_bytes {GIB} (1 of 2)"]


def test_thresholds_are_not_averaged(tmp_path):
    rows = [paged(vram=v, threshold=t, speed=t) for v in (1, 2) for t in (25, 51)]
    grid = load(dataset(tmp_path, rows))
    assert grid.speed["default"].tolist() == [[25, 25]]
    assert grid.left_out == ["threshold 25 (1 of 2)"]


def offloaded(ncmoe, vram=4, fits=True, **more) -> dict:
    own = {"mechanism": "cpu-offload", "ncmoe": ncmoe, "slots": 0, "seed": None}
    if not fits:
        own |= {"status": "out-of-memory", "decode_tokens": None, "decode_tokens_per_s": None}
    return row(None, vram, speed=100.0 - ncmoe, **own | more)


def test_layers_on_the_cpu_are_an_axis_where_they_vary(tmp_path):
    rows = [offloaded(n, fits=n >= 3) for n in range(6)]
    rows.append(row("lru", speed=7.0))  # no layers on the CPU: the same at any number of them
    folder = dataset(tmp_path / "d", rows)
    grid = load(folder)
    assert (grid.x_is, grid.x.tolist(), grid.left_out) == ("ncmoe", [0, 1, 2, 3, 4, 5], [])
    assert grid.speed["cpu-offload"][0, 3:].tolist() == [97, 96, 95]
    assert np.isnan(grid.speed["cpu-offload"][0, :3]).all()
    assert grid.too_big["cpu-offload"].tolist() == [[True] * 3 + [False] * 3]
    assert grid.speed["lru"].tolist() == [[7.0] * 6]
    told = draw(folder, tmp_path / "p.png")
    assert told["ncmoe"] == [0, 1, 2, 3, 4, 5] and "memory" not in told


def test_what_is_drawn_is_chosen_among_the_finished(tmp_path):
    """Of the commonest machine and number of layers nothing fits: the others are drawn."""
    rows = [offloaded(n, v, fits=False, hardware="small") for n in range(4) for v in (1, 2)]
    rows += [offloaded(n, v, fits=n > 2, hardware="big") for n in (2, 3) for v in (3, 4)]
    grid = load(dataset(tmp_path, rows))
    assert grid.about["hardware"] == "big"
    assert grid.speed["cpu-offload"].tolist() == [[97, 97]]
    assert grid.left_out == ["hardware big (1 of 2)", "ncmoe 3 (1 of 2)"]


def test_nothing_finished_says_so(tmp_path):
    folder = dataset(tmp_path, [offloaded(n, fits=False) for n in range(3)])
    with pytest.raises(InputError, match="no finished cell to draw"):
        load(folder)


def test_memory_is_the_other_axis_beside_layers_on_the_cpu(tmp_path):
    rows = [offloaded(n, v, fits=n >= 6 - v) for n in range(6) for v in (1, 2, 3)]
    rows += [row("lru", v, speed=v * 10) for v in (1, 2, 3)]
    folder = dataset(tmp_path / "d", rows)
    grid = load(folder)
    assert (grid.x_is, grid.x.tolist()) == ("ncmoe", [0, 1, 2, 3, 4, 5])
    assert (grid.y_is, grid.y.tolist(), grid.left_out) == ("memory", [1, 2, 3], [])
    assert grid.speed["lru"].tolist() == [[v * 10] * 6 for v in (1, 2, 3)]
    assert grid.too_big["cpu-offload"].sum(axis=1).tolist() == [5, 4, 3]
    assert grid.speed["cpu-offload"][2, 3:].tolist() == [97, 96, 95]
    told = draw(folder, tmp_path / "few.png")
    assert (told["kind"], told["memory"], told["ncmoe"]) == ("lines", [1, 2, 3], [0, 1, 2, 3, 4, 5])
    more = [offloaded(n, v, fits=n >= 6 - v) for n in range(6) for v in range(1, 8)]
    assert draw(dataset(tmp_path / "m", more), tmp_path / "many.png")["kind"] == "maps"


def test_layers_with_links_and_sizes_are_too_many_axes(tmp_path):
    rows = [offloaded(n, v, link=x) for n in (2, 3) for v in (3, 4) for x in (8, 16)]
    grid = load(dataset(tmp_path, rows))
    assert (grid.x_is, grid.y_is) == ("memory", "link")
    assert grid.left_out == ["ncmoe 2 (1 of 2)"]


def test_host_memory_is_an_axis_where_it_varies(tmp_path):
    rows = [offloaded(n, ram_bytes_per_s=r * 10**9) for n in range(3) for r in (20, 60)]
    folder = dataset(tmp_path / "d", rows)
    grid = load(folder)
    assert (grid.x_is, grid.y_is, grid.y.tolist()) == ("ncmoe", "ram", [20, 60])
    told = draw(folder, tmp_path / "p.png")
    assert told["ram_gb_per_s"] == [20, 60] and told["left_out"] == []
    linked = [offloaded(3, link=x, ram_bytes_per_s=r * 10**9) for x in (8, 16) for r in (20, 60)]
    grid = load(dataset(tmp_path / "l", linked))
    assert (grid.y_is, grid.left_out) == ("link", ["ram_bytes_per_s 20000000000 (1 of 2)"])


@pytest.mark.parametrize("column", ["reserve_bytes", "ctx", "kv_type"])
def test_what_memory_is_kept_for_is_not_averaged(tmp_path, column):
    values = ("f16", "q8_0") if column == "kv_type" else (1, 2)
    rows = [row(vram=v, speed=10.0 * (1 + i), **{column: x})
            for v in (1, 2) for i, x in enumerate(values)]  # fmt: skip
    grid = load(dataset(tmp_path, rows))
    assert grid.speed["lru"].tolist() == [[10, 10]]
    assert grid.left_out == [f"{column} {values[0]} (1 of 2)"]
