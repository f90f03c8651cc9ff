"""Shared fixtures."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# CI tries the same examples every time; elsewhere each run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real routing traces and published results, kept beside the checkout, never in it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real traces (../shared/data beside the checkout) are not here")
    return path


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """The small trained MoE that the repository ships."""
    path = ROOT / "experiments" / "tiny_moe" / "tiny-moe.gguf"
    if not path.is_file():
        pytest.skip("experiments/tiny_moe/tiny-moe.gguf is not here")
    return path
