"""How many tokens a text has: by a model's own tokenizer, or estimated from its bytes."""

from __future__ import annotations

from pathlib import Path

from traces.errors import InputError

BYTES_PER_TOKEN = 4.0
"""Of English text; the rule of thumb that OpenAI's help pages give ("1 token ~= 4 chars")."""


def estimate(text: str, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """Tokens of a text by its length in UTF-8, rounded up."""
    return int(-(-len(text.encode("utf-8", "surrogatepass")) // bytes_per_token))


class Tokenizer:
    """The tokenizer of a GGUF file, run by libllama; no weights are loaded. Use as a context manager.

    Counts as ``tokenizer(text).input_ids`` does: with the start token where the model has one.
    """

    def __init__(self, gguf: str | Path, lib: str | Path | None = None) -> None:
        """``lib``: a libllama, or the package that holds one; None: of the capture extra."""
        from traces.capture.find_library import find_library
        from traces.capture.libllama import Library, LlamaModel

        if not Path(gguf).is_file():
            raise InputError(f": {gguf}: no such file; name a GGUF file", "tokenizer")
        self.path = Path(gguf)
        self._model = LlamaModel(Library(find_library(lib)), gguf, vocab_only=True)

    def count(self, text: str) -> int:
        """Tokens of a text. Half a surrogate pair, which JSON may hold, counts as a question mark."""
        return len(self._model.tokenize(text.encode("utf-8", "replace").decode()))

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()
