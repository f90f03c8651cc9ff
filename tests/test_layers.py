"""The house: what may import what. A room imports rooms below it, and no two import each other."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
PACKAGES = ("traces", "uvmsim", "replay")

LAYERS = {
    "traces": (
        ("errors", "jit"),
        ("models",),
        ("files",),
        ("routing",),
        ("faults",),
        ("importers",),
        ("export", "synth"),
        ("capture", "samples"),
        ("requests",),
        ("commands",),
    ),
    "uvmsim": (
        ("version", "core"),
        ("workload",),
        ("machine",),
        ("bpf",),
        ("policies",),
        ("runs",),
        ("experts", "paging"),
        ("clocks",),
        ("mechanisms",),
        ("serving",),
        ("studies",),
        ("report",),
        ("commands",),
        ("cli",),
    ),
}
"""Rooms from the ground up; rooms of one floor do not know each other (docs/architecture.md)."""


def imports(file: Path) -> set[str]:
    """Absolute names of what a file imports from our packages, at any depth of the code."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] in PACKAGES}


def room(package: str, name: str) -> str | None:
    """The room of a package that a module lies in."""
    parts = name.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 else None


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(HOME).with_suffix("").parts)


ARROWS: dict[str, set[str]] = {
    module_of(file): imports(file) for p in PACKAGES for file in sorted((HOME / p).rglob("*.py"))
}


def test_packages_point_one_way():
    order = {name: i for i, name in enumerate(PACKAGES)}
    up = {
        (source, target)
        for source, targets in ARROWS.items()
        for target in targets
        if order[target.partition(".")[0]] > order[source.partition(".")[0]]
    }
    assert not up


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_rooms_point_down(package):
    floor = {name: i for i, names in enumerate(LAYERS[package]) for name in names}
    wrong = []
    for source, targets in ARROWS.items():
        here = room(package, source)
        if here is None or here == "__init__":
            continue
        assert here in floor, f"{source}: name its room in LAYERS"
        for target in targets:
            there = room(package, target)
            if there in floor and there != here and floor[there] >= floor[here]:
                wrong.append(f"{source} -> {target}")
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other(package):
    """No circle of modules within a package, however long."""
    arrows = {source.removesuffix(".__init__"): targets for source, targets in ARROWS.items()}
    graph = defaultdict(set)
    for source, targets in arrows.items():
        for target in targets:
            while target not in arrows and "." in target:
                target = target.rpartition(".")[0]
            if target.startswith(package) and target != source:
                graph[source].add(target)
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            raise AssertionError(" -> ".join([*path[path.index(node) :], node]))
        if node in done:
            return
        for target in sorted(graph[node]):
            visit(target, [*path, node])
        done.add(node)

    for source in sorted(arrows):
        if source.startswith(package):
            visit(source, [])
