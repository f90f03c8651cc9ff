"""Measure a GGUF model in PyTorch: held-out loss, unigram baseline, context length, balance."""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fetch_text import load_split
from gguf_weights import from_gguf
from model import Config, TinyMoE
from tokenizer import load_tokenizer, load_tokens


def windows(tokens: np.ndarray, length: int) -> torch.Tensor:
    """Non-overlapping rows of length + 1 tokens, so that every row predicts `length` tokens."""
    rows = (len(tokens) - 1) // length
    starts = np.arange(rows)[:, None] * length
    return torch.from_numpy(tokens.astype(np.int64)[starts + np.arange(length + 1)])


@torch.no_grad()
def losses_and_choices(model: TinyMoE, rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Loss of every predicted token [rows, length] and how often [layers, experts] was chosen."""
    losses = []
    counts = torch.zeros(model.config.layers, model.config.experts, dtype=torch.int64)
    for batch in rows.split(max(1, 8192 // rows.shape[1])):
        logits, routing = model(batch[:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        losses.append(loss.numpy())
        for layer, ids in enumerate(routing.ids):
            counts[layer] += torch.bincount(ids.flatten(), minlength=model.config.experts)
    return np.concatenate(losses), counts.numpy()


def unigram_nats(train: np.ndarray, targets: np.ndarray, vocabulary: int) -> float:
    """Cross-entropy of token frequencies of the training split (add-one smoothing)."""
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[targets].mean())


def gini(counts: np.ndarray) -> float:
    """0 when all experts are used equally often, near 1 when one gets everything."""
    ordered = np.sort(counts)
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1).dot(ordered) / (len(ordered) * ordered.sum()))


def report_loss(model: TinyMoE, cache: Path, split: str, length: int) -> np.ndarray:
    """Print loss and baseline in both units; returns the expert counts."""
    tokens = load_tokens(cache, split)
    rows = windows(tokens, length)
    losses, counts = losses_and_choices(model, rows)
    targets = rows[:, 1:].numpy()
    text_bytes = sum(len(row["text"].encode()) for row in load_split(cache, split))
    per_token_bits = len(tokens) / text_bytes / math.log(2)
    base = unigram_nats(load_tokens(cache, "train"), targets.flatten(), model.config.vocabulary)
    print(f"\n{split}: {targets.size} tokens predicted, {text_bytes / len(tokens):.3f} bytes/token")
    print("| model | nats/token | bits/byte |\n| --- | --- | --- |")
    for name, nats in (("tiny-moe", losses.mean()), ("unigram", base)):
        print(f"| {name} | {nats:.4f} | {nats * per_token_bits:.4f} |")
    return counts


def report_domains(model: TinyMoE, cache: Path, split: str, length: int) -> None:
    """Print the loss of each domain."""
    tokenizer = load_tokenizer(cache)
    print("\n| domain | nats/token |\n| --- | --- |")
    documents = load_split(cache, split)
    for domain in sorted({row["domain"] for row in documents}):
        texts = [row["text"] for row in documents if row["domain"] == domain]
        ids = [i for encoding in tokenizer.encode_batch(texts) for i in encoding.ids]
        losses, _ = losses_and_choices(model, windows(np.array(ids), length))
        print(f"| {domain} | {losses.mean():.3f} |")


def report_context(model: TinyMoE, cache: Path, split: str) -> None:
    """Print the loss by position inside one long context, over every fourth row."""
    rows = windows(load_tokens(cache, split), model.config.context)[::4]
    losses, _ = losses_and_choices(model, rows)
    print("\n| position | nats/token |\n| --- | --- |")
    edges = (0, 64, 256, 512, 1024, 1536, 2048, 3072, 4096)
    for low, high in itertools.pairwise(edges):
        print(f"| {low}-{high} | {losses[:, low:high].mean():.3f} |")


def report_balance(counts: np.ndarray) -> None:
    """Print how evenly each layer uses its experts."""
    print("\n| layer | entropy / log 32 | Gini | most used | least used | unused |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layer, row in enumerate(counts):
        share = row / row.sum()
        positive = share[share > 0]
        entropy = -(positive * np.log(positive)).sum() / math.log(len(row))
        print(
            f"| {layer} | {entropy:.4f} | {gini(row):.3f} | {share.max():.2%} | "
            f"{share.min():.2%} | {(row == 0).sum()} |"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = from_gguf(arguments.gguf, Config())
    report_loss(model, arguments.cache, "validation", arguments.length)
    counts = report_loss(model, arguments.cache, "heldout", arguments.length)
    report_balance(counts)
    report_domains(model, arguments.cache, "heldout", arguments.length)
    report_context(model, arguments.cache, "heldout")


if __name__ == "__main__":
    main()
