"""Train the tiny MoE on CPU: AdamW, warm-up and cosine, Switch balance loss, router z-loss.

The learning rate and the sequence length follow the progress of the run, which is the larger of
"share of the steps done" and "share of the minutes used", so a run on a busy machine still ends
with a finished schedule.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import model as model_module
import numpy as np
import torch
import torch.nn.functional as F
from model import Block, Config, Experts, Routing, TinyMoE
from tokenizer import load_tokens
from torch import Tensor

TOKENS_PER_STEP = 4096
LENGTHS = ((0.0, 256), (0.80, 512), (0.90, 1024), (0.96, 2048))  # from this progress on
PEAK_RATE, FINAL_SHARE, WARM_UP_STEPS = 3e-3, 0.03, 150
BALANCE, Z_LOSS, WEIGHT_DECAY, CLIP = 0.01, 1e-3, 0.1, 1.0
EVALUATE_EVERY, SAVE_EVERY = 250, 250


def sequence_length(progress: float) -> int:
    """Short rows first (cheap attention), long ones at the end."""
    return next(length for start, length in reversed(LENGTHS) if progress >= start)


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up, then cosine down to FINAL_SHARE of the peak."""
    cosine = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return PEAK_RATE * cosine * min(1.0, (step + 1) / WARM_UP_STEPS)


class Batches:
    """Walks through the text in a random order of rows, epoch after epoch."""

    def __init__(self, tokens: np.ndarray, seed: int) -> None:
        self.tokens = tokens.astype(np.int64)
        self.random = np.random.default_rng(seed)
        self.starts: list[int] = []
        self.length = 0

    def next(self, length: int) -> Tensor:
        """[batch, length + 1] token ids; TOKENS_PER_STEP of them are predicted."""
        rows = []
        for _ in range(TOKENS_PER_STEP // length):
            if not self.starts or length != self.length:
                offset = int(self.random.integers(length))
                self.length = length
                self.starts = list(range(offset, len(self.tokens) - length - 1, length))
                self.random.shuffle(self.starts)
            start = self.starts.pop()
            rows.append(self.tokens[start : start + length + 1])
        return torch.from_numpy(np.stack(rows))


def optimizer_for(model: TinyMoE) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def total_loss(logits: Tensor, targets: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """(what is minimised, cross-entropy, balance loss)."""
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    balance = routing.balance_loss()
    return loss + BALANCE * balance + Z_LOSS * routing.z_loss(), loss, balance


def compile_model() -> None:
    """Let torch fuse the element-wise work; the expert matrices stay outside (1.4 times as fast)."""
    global total_loss
    torch._dynamo.config.cache_size_limit = 64
    total_loss = torch.compile(total_loss, dynamic=False)
    Experts.apply = torch.compiler.disable(Experts.apply)  # type: ignore[method-assign]
    Block.forward = torch.compile(Block.forward, dynamic=False)  # type: ignore[method-assign]
    for name in ("_swiglu", "_swiglu_gradient"):
        setattr(model_module, name, torch.compile(getattr(model_module, name), dynamic=True))


@torch.no_grad()
def quick_loss(model: TinyMoE, tokens: np.ndarray, length: int = 256, batches: int = 8) -> float:
    """Mean validation loss in nats a token over the same evenly spaced rows every time."""
    starts = np.linspace(0, len(tokens) - length - 2, batches * 16).astype(int)
    losses = []
    for group in np.split(starts, batches):
        rows = np.stack([tokens[s : s + length + 1] for s in group]).astype(np.int64)
        batch = torch.from_numpy(rows)
        logits, _ = model(batch[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item())
    return float(np.mean(losses))


def train(cache: Path, steps: int, minutes: float, seed: int, compiled: bool, resume: bool) -> None:
    """Run the whole schedule; checkpoint.pt and log.jsonl appear in the cache folder."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    if compiled:
        compile_model()
    model = TinyMoE(Config(), torch.bfloat16)
    optimizer = optimizer_for(model)
    step, seconds = 0, 0.0
    if resume:
        state = torch.load(cache / "checkpoint.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    batches = Batches(load_tokens(cache, "train"), seed + step)
    validation = load_tokens(cache, "validation")
    log = (cache / "log.jsonl").open("a" if resume else "w")
    began = time.monotonic() - seconds
    progress = max(step / steps, seconds / 60 / minutes)
    while progress < 1.0:
        length = sequence_length(progress)
        batch = batches.next(length)
        rate = learning_rate(step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits, routing = model(batch[:, :-1])
        objective, loss, balance = total_loss(logits, batch[:, 1:], routing)
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        seconds = time.monotonic() - began
        progress = max(step / steps, seconds / 60 / minutes)
        if step % 10 == 0 or progress >= 1.0:
            row = {"step": step, "tokens": step * TOKENS_PER_STEP, "seconds": round(seconds, 1)}
            row |= {"rate": rate, "length": length, "loss": loss.item(), "balance": balance.item()}
            if step % EVALUATE_EVERY == 0 or progress >= 1.0:
                row["validation"] = quick_loss(model, validation)
            log.write(json.dumps(row) + "\n")
            log.flush()
        if step % SAVE_EVERY == 0 or progress >= 1.0:
            partial = cache / "checkpoint.tmp"
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step, "seconds": seconds}
            torch.save(state, partial)
            partial.replace(cache / "checkpoint.pt")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    parser.add_argument("--steps", type=int, default=5200)
    parser.add_argument("--minutes", type=float, default=49.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        arguments.cache,
        arguments.steps,
        arguments.minutes,
        arguments.seed,
        not arguments.no_compile,
        arguments.resume,
    )


if __name__ == "__main__":
    main()
