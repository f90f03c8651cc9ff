"""Fetch the training text from Debian 12 packages and split it by file.

The text itself is never redistributed: it is downloaded with `apt-get download` when the model is
built. The split depends only on the path inside the package, so it is the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path

from text_sources import SOURCES, Source, read_source

SPLITS = ("train", "validation", "heldout")


def split_of(path: str) -> str:
    """96 % of the files train, 2 % validate, 2 % are held out."""
    bucket = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 100
    return "heldout" if bucket < 2 else "validation" if bucket < 4 else "train"


def unpack(source: Source, cache: Path) -> Path:
    """Download and unpack the package of a source, unless that was done before."""
    root = cache / "root" / source.package
    if not root.exists():
        archives = cache / "deb"
        archives.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", source.package], cwd=archives, check=True)
        archive = next(archives.glob(f"{source.package}_*.deb"))
        root.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root


def build_splits(cache: Path) -> None:
    """Write cache/{train,validation,heldout}.jsonl: one document a line, no exact duplicates."""
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for source in SOURCES:
        for path, text in read_source(source, unpack(source, cache)):
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                row = {"domain": source.domain, "path": path, "text": text}
                rows[split_of(path)].append(row)
    for split, documents in rows.items():
        documents.sort(key=lambda row: hashlib.sha256(row["path"].encode()).hexdigest())
        with (cache / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in documents)
        size: Counter[str] = Counter()
        for row in documents:
            size[row["domain"]] += len(row["text"].encode())
        print(split, len(documents), "files,", dict(size), "bytes")


def load_split(cache: Path, split: str) -> list[dict[str, str]]:
    """The documents of a split, fetched first if need be."""
    file = cache / f"{split}.jsonl"
    if not file.exists():
        build_splits(cache)
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def heldout_prompt(cache: Path, bytes_per_domain: int) -> str:
    """A passage of whole lines from one held-out file of every domain, one after the other."""
    documents = load_split(cache, "heldout")
    passages = []
    for source in SOURCES:
        text = next(
            row["text"]
            for row in documents
            if row["domain"] == source.domain
            and len(row["text"]) > 4 * bytes_per_domain
            and "test" not in row["path"]
        )
        start = text.index("\n", len(text) // 4) + 1
        end = text.index("\n", start + bytes_per_domain)
        passages.append(text[start:end].strip("\n"))
    return "\n\n".join(passages) + "\n"


def main() -> None:
    """Command line: build the splits, or write a held-out prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build"), help="folder of downloads")
    parser.add_argument("--heldout", type=Path, help="write a held-out prompt to this file")
    parser.add_argument("--bytes-per-domain", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.heldout is None:
        build_splits(arguments.cache)
    else:
        prompt = heldout_prompt(arguments.cache, arguments.bytes_per_domain)
        arguments.heldout.write_text(prompt, encoding="utf-8")


if __name__ == "__main__":
    main()
