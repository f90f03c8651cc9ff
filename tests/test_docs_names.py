"""Every file, module and name that the documentation speaks of is there."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "INVARIANTS.md")]
    + [*ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/README.md")]
)
"""Not CHANGELOG.md, which speaks of the past too."""

FOLDERS = ("uvmsim", "traces", "replay", "tests", "docs", "experiments")
FOLDER = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*{{}},+-]*")
DOTTED = re.compile(r"(?<![\w./-])(?:uvmsim|traces|replay)(?:\.[A-Za-z_]\w*)+(?!\w*[/-])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?) *$", re.M)
ENDINGS = (".csv", ".arrow", ".toml", ".json", ".md", ".png", ".sweep")
"""What looks like a dotted name and is a file's."""
MADE = {
    "uvmsim.faults": "the schema of a fault trace",
    "uvmsim.end": "a key of a file's metadata",
    "uvmsim.page_policies": "a group of entry points",
}
"""Dotted names that are no module's."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def files_of(text: str) -> set[str]:
    """Paths from the top of the checkout, as they stand in a text."""
    found = (m.group().rstrip(".,") for m in FOLDER.finditer(text))
    return {p for p in found if "{" not in p}


def names_of(text: str) -> set[str]:
    return {m.group() for m in DOTTED.finditer(text) if not m.group().endswith(ENDINGS)}


def there(path: str) -> bool:
    """Whether a file, a folder or a pattern of files is in the checkout."""
    if "*" in path:
        return any(ROOT.glob(path))
    return (ROOT / path).exists()


def known(name: str) -> bool:
    """Whether a dotted name is a module, or something in one (a field of a dataclass included)."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        module = ".".join(parts[:n])
        try:
            if find_spec(module) is None:
                continue
        except ModuleNotFoundError:
            continue
        value = import_module(module)
        for part in parts[n:]:
            if part in getattr(value, "__dataclass_fields__", ()):
                return True
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def anchors(page: Path) -> set[str]:
    """What links into a page may name, as GitHub makes it of headings."""
    plain = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", h) for h in HEADING.findall(page.read_text()))
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_are_there(page):
    assert sorted(p for p in files_of(page.read_text("utf-8")) if not there(p)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_are_known(page):
    lost = [n for n in names_of(page.read_text("utf-8")) if n not in MADE and not known(n)]
    assert sorted(lost) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    lost = []
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


def test_a_name_that_is_gone_is_found():
    text = (
        "See `uvmsim/memory/pool.py`, uvmsim.memory.pool and `uvmsim.runs.job.Jobs`; uvmsim/runs/."
    )
    assert [p for p in files_of(text) if not there(p)] == ["uvmsim/memory/pool.py"]
    gone = sorted(n for n in names_of(text) if not known(n))
    assert gone == ["uvmsim.memory.pool", "uvmsim.runs.job.Jobs"]
