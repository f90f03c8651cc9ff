"""ShareGPT conversations, sampled by the rules of ``vllm bench serve --dataset-name sharegpt``.

Conversations of two turns or more are shuffled by ``random.seed(seed)``; the first turn is the
prompt and the second's length is what is generated. Kept are those of `MIN_TOKENS` or more both
ways, a prompt of at most `MAX_PROMPT` and both of at most `MAX_BOTH` together
(vllm/benchmarks/datasets/datasets.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.requests.formats import Columns
from traces.requests.tokens import BYTES_PER_TOKEN, estimate
from traces.requests.trace import MAX_TOKENS, RequestTrace

MIN_TOKENS, MAX_PROMPT, MAX_BOTH = 4, 1024, 2048
MAX_ENTRY = 8 << 20
"""Characters of a conversation."""
_READ = 1 << 20
_SPACE = " \t\r\n"


def load(
    path: Path,
    format: Columns,
    *,
    limit: int | None = None,
    seed: int = 0,
    output_len: int | None = None,
    count: Callable[[str], int] | None = None,
    counted_by: str = "",
) -> RequestTrace:
    """The first ``limit`` requests of the sample, in the order in which vLLM sends them.

    ``count``: tokens of a text, said to be ``counted_by`` in the notes; None estimates them.
    ``output_len``: tokens of every answer, in place of the second turn's.
    """
    if output_len is not None and not 1 <= output_len <= MAX_TOKENS:
        raise InputError(f": {output_len} tokens; give 1 or more", "output_len")
    turns: list[tuple[Any, Any]] = []
    for number, entry in entries(path):
        two = _turns(path, number, entry)
        if two:
            # Lengths are all that an estimate needs of hundreds of megabytes of text.
            turns.append(two if count else (estimate(two[0]), estimate(two[1])))
    random.Random(seed).shuffle(turns)
    of = count or int
    prompt: list[int] = []
    output: list[int] = []
    for first, second in turns:
        if limit is not None and len(prompt) >= limit:
            break
        p, o = of(first), of(second) if output_len is None else output_len
        short = p < MIN_TOKENS or (output_len is None and o < MIN_TOKENS)
        if not short and p <= MAX_PROMPT and p + o <= MAX_BOTH:
            prompt.append(p)
            output.append(o)
    if not prompt:
        raise InputError(
            f"{path}: none of {len(turns)} conversations of two turns has {MIN_TOKENS} to {MAX_PROMPT} "
            f"tokens of prompt and {MAX_BOTH} in all; name another file"
        )
    guess = f"tokens estimated, {BYTES_PER_TOKEN:g} bytes of text each; `tokenizer` counts them"
    notes = [
        f"sampled as vllm bench serve does, seed {seed}: {len(prompt):,} of {len(turns):,} "
        "conversations",
        counted_by if count else guess,
    ]
    if limit is not None and len(prompt) < limit:
        notes.append(f"{limit:,} were asked for; vLLM would send some twice")
    return RequestTrace(
        None,
        np.array(prompt, np.int32),
        np.array(output, np.int32),
        source=format.source,
        format=format.name,
        path=str(path),
        notes=tuple(notes),
    )


def _turns(path: Path, number: int, entry: Any) -> tuple[str, str] | None:
    """Prompt and answer; None where a conversation has fewer than two turns."""
    where = f"{path}: conversation {number}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not an object with conversations; mend or remove it")
    turns = entry.get("conversations")
    if turns is None:
        return None
    if not isinstance(turns, list):
        raise InputError(f"{where}: conversations is not a list of turns; mend or remove it")
    if len(turns) < 2:
        return None
    texts: list[str] = []
    for i, turn in enumerate(turns[:2]):
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{where}: turn {i} has no text (value); mend or remove it")
        texts.append(text)
    return texts[0], texts[1]


def entries(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list one by one, numbered from 1: files are large."""
    try:
        with path.open(encoding="utf-8-sig") as f:
            yield from _elements(path, f.read)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8; export it again") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from None


def _elements(path: Path, read: Callable[[int], str]) -> Iterator[tuple[int, Any]]:
    decode = json.JSONDecoder().raw_decode
    text, at, number = read(_READ), 0, 0

    def more(n: int = _READ) -> bool:
        nonlocal text, at
        fresh = read(n)
        text, at = text[at:] + fresh, 0
        return bool(fresh)

    def peek() -> str:
        """The next character that is no space; empty at the end of the file."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in _SPACE:
                at += 1
            if at < len(text):
                return text[at]
            if not more():
                return ""

    def broken(why: str) -> InputError:
        return InputError(f"{path}: conversation {number}: {why}; export the file again")

    if peek() != "[":
        raise InputError(f"{path}: not a JSON list of conversations; name a ShareGPT file")
    at += 1
    if peek() == "]":
        return
    while True:
        number += 1
        peek()
        while True:
            try:
                value, at = decode(text, at)
                break
            except json.JSONDecodeError as e:
                held = len(text) - at
                if held > MAX_ENTRY:
                    raise broken(f"not valid JSON, or longer than {MAX_ENTRY >> 20} MiB") from None
                if not more(max(_READ, held)):
                    raise broken(f"not valid JSON ({e.msg})") from None
            except ValueError:
                raise broken("a number of thousands of digits") from None
            except RecursionError:
                raise broken("nested too deeply") from None
        yield number, value
        mark = peek()
        if mark == "]":
            return
        if mark != ",":
            raise broken("no comma or ] after it")
        at += 1
