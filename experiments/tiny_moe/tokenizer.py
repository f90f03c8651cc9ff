"""Byte-level BPE vocabulary: trained on the training split, split rule of GPT-2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fetch_text import load_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_SIZE = 2048


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A BPE of VOCABULARY_SIZE tokens; llama.cpp calls its split rule `gpt-2`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(cache: Path) -> Tokenizer:
    """The tokenizer of this cache folder, trained first if need be."""
    file = cache / "tokenizer.json"
    if not file.exists():
        train_tokenizer([row["text"] for row in load_split(cache, "train")]).save(str(file))
    return Tokenizer.from_file(str(file))


def load_tokens(cache: Path, split: str) -> np.ndarray:
    """All documents of a split as one array of token ids, END_OF_TEXT before each."""
    file = cache / f"{split}.npy"
    if not file.exists():
        tokenizer = load_tokenizer(cache)
        separator = [tokenizer.token_to_id(END_OF_TEXT)]
        encodings = tokenizer.encode_batch([row["text"] for row in load_split(cache, split)])
        parts = [np.array(separator + encoding.ids, np.uint16) for encoding in encodings]
        np.save(file, np.concatenate(parts))
    return np.load(file)
