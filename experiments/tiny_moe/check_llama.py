"""Compare llama.cpp and PyTorch on the same GGUF file and held-out text; then write some text.

llama.cpp is driven through uvmsim's own capture layer, so its routing is compared too: uvmsim must
be installed with its capture extra.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from evaluate import windows
from fetch_text import heldout_prompt, load_split
from gguf_weights import from_gguf
from model import Config
from tokenizer import load_tokenizer, load_tokens

from traces.capture.find_library import find_library
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.routing_callback import RoutingCallback


def check_tokenizer(llama: LlamaModel, cache: Path) -> None:
    """Count held-out documents that both tokenizers cut in the same way."""
    tokenizer = load_tokenizer(cache)
    texts = [row["text"] for row in load_split(cache, "heldout")]
    same = sum(tokenizer.encode(text).ids == llama.tokenize(text) for text in texts)
    print(f"tokenizer: {same} of {len(texts)} held-out documents cut identically")


def run_llama(
    library: Library, llama: LlamaModel, rows: np.ndarray, layers: int, threads: int
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Logits [rows, length, vocabulary] and expert ids by row and layer."""
    logits, routing = [], []
    length = rows.shape[1]
    for row in rows:
        callback = RoutingCallback(library, range(layers))
        with LlamaContext(
            llama,
            n_ctx=length,
            n_batch=length,
            n_ubatch=length,
            n_threads=threads,
            callback=callback.pointers,
        ) as context:
            context.decode(row.tolist(), range(length), [0] * length, [True] * length)
            logits.append(np.stack([context.logits(i) for i in range(length)]))
        (batch,) = [b for b in callback.drain() if b.layers]
        routing.append([batch.layers[layer].experts for layer in range(layers)])
    return np.stack(logits), routing


def check_numbers(
    library: Library, llama: LlamaModel, path: Path, cache: Path, threads: int
) -> None:
    """Print how far logits, losses and expert sets of both programs are apart."""
    config = Config()
    batch = windows(load_tokens(cache, "heldout"), 512)[::60]
    rows, targets = batch[:, :-1], batch[:, 1:]
    theirs, their_experts = run_llama(library, llama, rows.numpy(), config.layers, threads)
    with torch.no_grad():
        ours, routing = from_gguf(path, config)(rows)
    agree = np.zeros(config.layers)
    for layer in range(config.layers):
        mine = np.sort(routing.ids[layer].view(*rows.shape, -1).numpy(), -1)
        other = np.sort(np.stack([row[layer] for row in their_experts]), -1)
        agree[layer] = (mine == other).all(-1).mean()
    reference = torch.from_numpy(theirs)
    difference = (ours - reference).abs()
    losses = [
        torch.nn.functional.cross_entropy(x.flatten(0, 1), targets.flatten()).item()
        for x in (ours, reference)
    ]
    top = (ours.argmax(-1) == reference.argmax(-1)).float().mean().item()
    print(f"{rows.numel()} held-out tokens in {len(rows)} rows of {rows.shape[1]}")
    print(f"same expert set: {agree.mean():.2%}; by layer {[f'{a:.2%}' for a in agree]}")
    print(f"logits: mean difference {difference.mean():.2e}, largest {difference.max():.2e}")
    print(f"same most likely token: {top:.2%}")
    print(f"loss: PyTorch {losses[0]:.4f}, llama.cpp {losses[1]:.4f} nats/token")


def write_text(llama: LlamaModel, cache: Path, count: int, threads: int) -> None:
    """Continue a held-out prompt, token by token, at temperature 1 (cooler, it falls into loops)."""
    random = np.random.default_rng(0)
    tokenizer = load_tokenizer(cache)
    prompt = llama.tokenize(heldout_prompt(cache, 600))
    print(f"--- prompt of {len(prompt)} tokens, then {count} generated:")
    tokens = list(prompt)
    with LlamaContext(llama, n_ctx=len(prompt) + count, n_threads=threads) as context:
        context.decode(
            prompt, range(len(prompt)), [0] * len(prompt), [False] * (len(prompt) - 1) + [True]
        )
        at = len(prompt) - 1
        for _ in range(count):
            scaled = context.logits(at).astype(np.float64)
            chances = np.exp(scaled - scaled.max())
            tokens.append(int(random.choice(len(chances), p=chances / chances.sum())))
            context.decode([tokens[-1]], [len(tokens) - 1], [0], [True])
            at = 0
    print(tokenizer.decode(tokens[len(prompt) - 40 :]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    parser.add_argument("--write", type=int, default=0, help="tokens of text to generate")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    library = Library(find_library())
    with LlamaModel(library, arguments.gguf) as llama:
        check_tokenizer(llama, arguments.cache)
        check_numbers(library, llama, arguments.gguf, arguments.cache, arguments.threads)
        if arguments.write:
            write_text(llama, arguments.cache, arguments.write, arguments.threads)


if __name__ == "__main__":
    main()
