"""What a policy's files say is what runs: after any edit, warm or cold, in one process or across."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from edited_policy import PLACES, found, wanted, write

START = dict.fromkeys(PLACES, 0)


@pytest.mark.parametrize("place", PLACES)
def test_an_edit_within_one_process_is_seen(tmp_path, place):
    """Also undone: the first version must come back."""
    for value in (0, 1, 0):
        parts = START | {place: value}
        write(tmp_path, parts)
        assert found("cache_misses", tmp_path) == wanted("cache_misses", parts)


@pytest.mark.parametrize("kind", ["experts", "prefetch", "pages"])
def test_an_edited_helpers_helper_is_seen_by_every_kind(tmp_path, kind):
    for value in (0, 1):
        parts = START | {"helpers_helper": value}
        write(tmp_path, parts)
        assert found(kind, tmp_path) == wanted(kind, parts)


def test_edits_between_processes_are_seen_warm_and_cold(tmp_path):
    """One disk cache for all of them, filled by the version before; then an empty one."""
    files, warm, cold = (tmp_path / n for n in ("files", "warm", "cold"))
    files.mkdir()
    parts = dict(START)
    for place in (None, *PLACES):
        if place:
            parts[place] = 1
        write(files, parts)
        assert in_a_process(files, warm, "cache_misses") == [wanted("cache_misses", parts)]
    kinds = ("cache_misses", "experts", "prefetch", "pages")
    assert in_a_process(files, warm, *kinds) == [wanted(kind, parts) for kind in kinds]
    parts["helper"] = 0
    write(files, parts)
    want = [wanted(kind, parts) for kind in kinds]
    assert in_a_process(files, warm, *kinds) == want
    assert in_a_process(files, cold, "cache_misses") == want[:1]


def in_a_process(files: Path, cache: Path, *kinds: str) -> list[object]:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "edited_policy.py"), *kinds, str(files)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_helper_that_cannot_be_digested_is_not_cached_and_says_so(tmp_path):
    from uvmsim.core.bind import bind
    from uvmsim.policies.user_files import load

    (tmp_path / "p.py").write_text(
        "from numba import njit, vectorize\n"
        "@vectorize(['int64(int64)'])\ndef twice(x):\n    return 2 * x\n"
        "def hook(x):\n    return twice(x)\n"
        "def template(x):\n    return x\n"
    )
    module = load(str(tmp_path / "p.py"))
    bound = bind(module.hook, {})
    assert bound.note is not None and "twice" in bound.note and "anew" in bound.note
    assert bound.run(3) == 6


def test_a_module_constant_behind_a_module_is_digested(tmp_path):
    """``helper.K`` is a global too."""
    from uvmsim.core.bind import bind
    from uvmsim.policies.user_files import load

    (tmp_path / "p.py").write_text("import consts\ndef f(x):\n    return x + consts.K\n")
    for value in (1, 2):
        (tmp_path / "consts.py").write_text(f"K = {value}\n")
        assert bind(load(str(tmp_path / "p.py")).f, {}).run(0) == value


def test_a_state_whose_fields_change_places_is_another(tmp_path):
    """The bytecode of the hooks is the same; what ``s.a`` means is not."""
    import numpy as np

    from uvmsim.core.bind import bind
    from uvmsim.policies.user_files import load

    for fields, want in (("a b", 1), ("b a", 2)):
        first, second = fields.split()
        (tmp_path / "p.py").write_text(
            "from typing import NamedTuple\nimport numpy as np\n"
            f"class S(NamedTuple):\n    {first}: np.ndarray\n    {second}: np.ndarray\n"
            "def f(s):\n    return s.a[0]\n"
        )
        module = load(str(tmp_path / "p.py"))
        state = module.S(a=np.array([want]), b=np.array([9]))
        assert bind(module.f, {}, states=(state,)).run(state) == want


def test_a_scripts_own_class_leaves_nothing_on_disk(tmp_path):
    """Each process has a ``__main__`` of its own: what one keeps, the next would not find."""
    code = (
        "from typing import NamedTuple\nimport numpy as np\nfrom uvmsim.core.bind import bind\n"
        "class S(NamedTuple):\n    a: np.ndarray\ndef f(s):\n    return s.a[0]\n"
        "s = S(np.array([3]))\nassert bind(f, {}, states=(s,)).run(s) == 3\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    cache = tmp_path / "cache"
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(cache.rglob("*script*.nbi"))
