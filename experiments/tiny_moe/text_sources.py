"""Which files of which Debian package are training text, and how each becomes plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

_SKIPPED_HTML = {"script", "style", "svg", "head", "button", "form", "nav"}
_BLOCK_HTML = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "pre", "table", "dt", "dd"}


@dataclass(frozen=True)
class Source:
    """One domain of text: a Debian package, the files wanted from it, and their clean-up."""

    domain: str
    package: str
    pattern: str
    wanted: Callable[[str], bool]
    to_text: Callable[[str], str]


class _Stripper(HTMLParser):
    """Keeps the text of an HTML page, one line per block element."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED_HTML:
            self.skipping.append(tag)
        self.preformatted += tag == "pre"
        if tag in _BLOCK_HTML:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.skipping:
            del self.skipping[self.skipping.index(tag) :]
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        if tag in _BLOCK_HTML:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_to_text(page: str) -> str:
    """Plain text of an HTML page, without scripts, drawings and menus."""
    stripper = _Stripper()
    stripper.feed(page)
    return tidy("".join(stripper.parts))


def tidy(text: str) -> str:
    """Drop trailing blanks and runs of empty lines."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def go_to_text(code: str) -> str:
    """Go code without the licence header that almost every file repeats."""
    if code.startswith("// Copyright"):
        code = re.sub(r"\A(//.*\n)+\n", "", code)
    return tidy(code)


def _sqlite_wanted(path: str) -> bool:
    """Leave out the indexes and the page that repeats sentences of all the others."""
    name = path.rsplit("/", 1)[-1]
    return "crossref" not in name and name not in {"requirements.html", "capi3ref.html"}


def _go_wanted(path: str) -> bool:
    """The standard library: no vendored copies, test data, tables or compiler."""
    parts = path.split("/")
    name = parts[-1]
    return not (
        {"vendor", "testdata", "cmd", "syscall", "test"} & set(parts)
        or name.startswith(("z", "tables", "rewrite", "opGen"))
        or name in {"zipdata.go", "h2_bundle.go"}
    )


SOURCES = (
    Source("python-docs", "python3.11-doc", "**/*.rst.txt", lambda path: True, tidy),
    Source("sqlite-docs", "sqlite3-doc", "**/*.html", _sqlite_wanted, html_to_text),
    Source("go-code", "golang-1.19-src", "**/*.go", _go_wanted, go_to_text),
)


def read_source(source: Source, root: Path) -> list[tuple[str, str]]:
    """(path inside the package, plain text) of every wanted file, in a fixed order."""
    documents = []
    for file in sorted(root.glob(source.pattern)):
        path = file.relative_to(root).as_posix()
        if not file.is_file() or file.is_symlink() or not source.wanted(path):
            continue
        raw = file.read_text(encoding="utf-8", errors="ignore")
        if "Code generated" in raw[:2000]:
            continue
        text = source.to_text(raw)
        if 400 <= len(text) <= 400_000:
            documents.append((path, text))
    return documents
