"""Two readings of "the next layer's gate, too early", measured on held-out text in llama.cpp.

    python fetch_text.py                       # once, for the held-out documents
    python predictors.py tiny-moe.gguf         # prints the table of the model card

Recorded by `uvmsim capture --scores-next --scores-pre` is the whole *router* (its layer's norm, then
its gate) on an earlier residual stream. The other reading is the *gate alone*, on what the earlier
norm put out: the input of the experts of a layer before, or of the layer's own attention.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from fetch_text import load_split

from traces.capture.find_library import find_library
from traces.capture.gate_graph import GateGraph
from traces.capture.gate_rule import GateRule
from traces.capture.ggml_tensor import TensorReader
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.routing_callback import MicroBatch, RoutingCallback
from traces.models.gguf import describe
from traces.models.gguf_tensors import GgufTensors

ROW, ROWS = 512, 8
Sides = tuple[np.ndarray, np.ndarray]
"""What a norm reads and what it puts out, [tokens, d] each."""


class NormSides:
    """A watcher that keeps both sides of the norms before attention and before the experts."""

    def __init__(self, library: Library, model: Path) -> None:
        self._graph = GateGraph(library.c, GgufTensors(model))
        self._read = TensorReader(library.c).read
        self.rules: dict[int, GateRule] = {}
        self.begins()

    def begins(self) -> None:
        self.attention: dict[int, Sides] = {}
        self.experts: dict[int, Sides] = {}

    def wants(self, name: bytes) -> bool:
        return name.rpartition(b"-")[0] in (b"attn_norm", b"ffn_moe_logits")

    def take(self, name: bytes, address: int, micro: MicroBatch) -> None:
        layer = int(name.rpartition(b"-")[2])
        if name.startswith(b"attn_norm-"):
            self.attention[layer] = self._both(address)
        elif name.startswith(b"ffn_moe_logits-"):
            self.experts[layer] = self._both(self._graph.router_input(address))
        elif layer not in self.rules:
            self.rules[layer] = self._graph.rule(address)

    def _both(self, output: int) -> Sides:
        return self._read(self._graph.residual(output)), self._read(output)


def found(scores: np.ndarray, chosen: np.ndarray, width: int) -> float:
    """Share of the chosen experts among the ``width`` best scores."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :width]
    return float((chosen[:, :, None] == best[:, None, :]).any(axis=2).mean())


def readings(sides: NormSides, layers: tuple[int, ...], about: int) -> dict[str, np.ndarray]:
    """Scores of each predictor in both readings for the ``about``-th MoE layer."""
    rule = sides.rules[layers[about]]
    sources = {"pre": sides.attention[layers[about]]}
    sources |= {f"next{n}": sides.experts[layers[about - n]] for n in (1, 2) if about >= n}
    scores = {f"{name}, router": rule.scores(x) for name, (x, _) in sources.items()}
    # This model's gates have no bias: the product is all.
    alone = {f"{name}, gate alone": y @ rule.weight.T for name, (_, y) in sources.items()}
    return scores | alone


def main() -> None:
    """Command line: print one row a predictor and reading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    library, info = Library(find_library()), describe(arguments.model)
    sides = NormSides(library, arguments.model)
    callback = RoutingCallback(library, info.moe_layers, watcher=sides)
    text = "\n".join(row["text"] for row in load_split(arguments.cache, "heldout"))
    k = info.top_k
    recalls: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with LlamaModel(library, arguments.model) as model:
        for start in range(0, len(text) - 8 * ROW, len(text) // ROWS):
            tokens = model.tokenize(text[start : start + 8 * ROW])[:ROW]
            with LlamaContext(model, n_ctx=ROW, callback=callback.pointers) as context:
                context.decode(tokens, range(ROW), [0] * ROW, [True] * ROW)
                (micro,) = callback.drain()
            for about, layer in enumerate(info.moe_layers):
                for name, scores in readings(sides, info.moe_layers, about).items():
                    for width in (k, 2 * k):
                        share = found(scores, micro.layers[layer].experts, width)
                        recalls[name, width][layer].append(share)
    print(f"rows of {ROW} held-out tokens; recall of the top {k}, mean over layers (range)")
    for (name, width), by_layer in sorted(recalls.items()):
        means = [float(np.mean(v)) for v in by_layer.values()]
        print(
            f"{name}, {width} guesses: {np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f}), "
            f"{len(by_layer[info.moe_layers[-1]])} rows"
        )


if __name__ == "__main__":
    main()
