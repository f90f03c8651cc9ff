"""Where results cannot go, and options that nothing would use: one line, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from uvmsim.cli import main; main()"]
ROOT = Path(__file__).parent.parent


def run(*args: str, **kw):
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, cwd=ROOT, **kw)


def one_line(done, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe.arrow"
    os.mkfifo(pipe)
    one_line(run("trace", "synth", "-o", str(pipe), "--shape", "gpt-oss-20b", "--tokens", "4"),
             "no regular file")  # fmt: skip
    assert not pipe.is_file() and pipe.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe.arrow"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "policies"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            check=False,
        )  # fmt: skip
    one_line(done, "No space left")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("-p", "1000000000", "-n", "0"), "at most"),
        (("-n", "-1"), "negative"),
        (("--slots", "5"), "expert-cache"),
        (("--ncmoe", "3"), "cpu-offload"),
        (("--mechanism", "zero-copy", "--policy", "default"), "no policies"),
        (("--policy", "lru"), "expert-cache"),
    ],
)
def test_options_that_make_no_sense(args, word):
    one_line(run("llama-bench", *args), word)


HOOK = """
from uvmsim.policies.pages.base import PagePolicy, BYPASS
class P(PagePolicy):
    {line}
    def page_prefetch({args}):
        return BYPASS
"""


@pytest.mark.parametrize(
    ("line", "args", "word"),
    [("", "s, d, block, page, region", "@staticmethod"), ("@staticmethod", "s, d, page", "takes")],
)
def test_a_hook_of_another_shape(tmp_path, line, args, word):
    (tmp_path / "p.py").write_text(HOOK.format(line=line, args=args))
    one_line(run("llama-bench", "-n", "1", "-p", "0", "--policy", f"{tmp_path}/p.py:P"), word)
