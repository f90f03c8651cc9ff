"""Parts that llama.cpp builds every graph of: `src/llama-graph.cpp` of b11549 (``build_norm``,
``build_qkv``, ``build_attn``, ``build_ffn``, ``build_moe_ffn``), as shapes and in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uvmsim.machine.llamacpp import ggml
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.ggml import GPU, Graph, Tensor, like, mul_mat, mul_mat_id, reshape
from uvmsim.machine.llamacpp.kv_cache import LayerCache, rotations
from uvmsim.machine.llamacpp.model_file import LlamaModel

MAX_CACHED = 32
"""Tokens a micro-batch up to which the expert cache is used (``llama_moe_cache::max_batch``)."""

_NOT_MIXED = frozenset(("cogvlm", "deepseek4"))
"""Architectures whose batches hold tokens or embeddings, never both."""


@dataclass(frozen=True)
class Setting:
    """What a graph is built for."""

    n_tokens: int
    n_outputs: int
    n_streams: int
    flash: bool
    forced: Callable[[int], int | None]
    """The device that norms of a block are pinned to, if any."""
    slots: Callable[[int], int]
    """Slots of the expert cache for a block's layout; 0: not cached."""


class Builder:
    """A graph under construction. ``weight`` gives a placed tensor by name, None where absent."""

    def __init__(
        self,
        model: LlamaModel,
        config: LlamaConfig,
        setting: Setting,
        weight: Callable[[str], Tensor | None],
        caches: dict[int, LayerCache],
    ) -> None:
        self.model, self.config, self.set, self.caches = model, config, setting, caches
        self.graph = Graph()
        self._weight = weight
        self._masks: dict[bool, tuple[Tensor, Tensor, Tensor]] = {}
        self._rotations: dict[bool, tuple[Tensor | None, Tensor | None]] = {}

    def get(self, block: int, name: str) -> Tensor | None:
        return self._weight(f"blk.{block}.{name}")

    def need(self, block: int, name: str) -> Tensor:
        found = self.get(block, name)
        if found is None:
            raise KeyError(f"blk.{block}.{name}")
        return found

    def top(self, name: str) -> Tensor | None:
        return self._weight(name)

    # ---- inputs -----------------------------------------------------------------------------------

    def embedding(self) -> Tensor:
        """Rows of the table; raw embeddings and a mix of both have their branches in every graph."""
        n = self.set.n_tokens
        tokens = ggml.input_tensor("I32", n, name="inp_tokens")
        raw = ggml.input_tensor("F32", self.model.n_embd, n, name="inp_embd")
        table = self.top("token_embd.weight")
        assert table is not None
        rows = ggml.get_rows(table, tokens)
        self.graph.expand(rows)
        if self.model.architecture in _NOT_MIXED:
            self.graph.expand(raw)
            return rows
        some = ggml.get_rows(table, ggml.input_tensor("I32", n, name="inp_mixed_tokens"))
        self.graph.expand(some)
        self.graph.expand(raw)
        slots = ggml.input_tensor("I64", n, name="inp_mixed_slots")
        mixed = ggml.input_tensor("F32", self.model.n_embd, n, name="inp_mixed_embd")
        self.graph.expand(ggml.set_rows(like("DUP", mixed), some, slots))
        return rows

    def attention_inputs(self, windowed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Where K and V are written, and the mask, of one kind of cache."""
        if windowed not in self._masks:
            cells = next(
                c.cells for c in self.caches.values() if self.model.windowed[c.block] == windowed
            )
            n, streams = self.set.n_tokens, self.set.n_streams
            transposed = self.config.flash_attention == "off"
            widest = max(self.model.head_v * h for h in self.model.n_head_kv)
            kind = "F16" if self.set.flash else "F32"
            self._masks[windowed] = (
                ggml.input_tensor("I64", n, name="k_idxs"),
                ggml.input_tensor("I64", n * widest if transposed else n, name="v_idxs"),
                ggml.input_tensor(kind, cells, n // streams, 1, streams, name="kq_mask"),
            )
        return self._masks[windowed]

    def rotation(self, windowed: bool) -> tuple[Tensor | None, Tensor | None]:
        """What quantised K and V are rotated with, of one kind of cache."""
        if windowed not in self._rotations:
            k, v = rotations(self.model, self.config)
            self._rotations[windowed] = (
                ggml.input_tensor("F32", k, k, name="k_rot") if k else None,
                ggml.input_tensor("F32", v, v, name="v_rot") if v else None,
            )
        return self._rotations[windowed]

    # ---- norms, projections -----------------------------------------------------------------------

    def norm(self, x: Tensor, weight: Tensor | None, block: int) -> Tensor:
        y = like("RMS_NORM", x)
        if weight is None:
            return y
        if block >= 0:
            y.target = self.set.forced(block)
        return like("MUL", y, weight)

    def biased(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return x if bias is None else like("ADD", x, bias)

    def rope(self, x: Tensor, positions: Tensor) -> Tensor:
        return like("ROPE", x, positions, self.top("rope_freqs.weight"))

    def qkv(self, block: int, x: Tensor, *, shaped: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        m, n = self.model, self.set.n_tokens
        widths = (
            (m.n_head, m.head_k),
            (m.n_head_kv[block], m.head_k),
            (m.n_head_kv[block], m.head_v),
        )
        fused = self.get(block, "attn_qkv.weight")
        out: list[Tensor] = []
        if fused is not None:
            all_of = self.biased(mul_mat(fused, x), self.get(block, "attn_qkv.bias"))
            offset = 0
            for heads, head in widths:
                ne = (head, heads, n)
                out.append(ggml.view(all_of, ne, (head * 4, all_of.nb[1]), offset))
                offset += 4 * heads * head
            return out[0], out[1], out[2]
        for part in ("attn_q", "attn_k", "attn_v"):
            y = mul_mat(self.need(block, f"{part}.weight"), x)
            out.append(self.biased(y, self.get(block, f"{part}.bias")))
        if shaped:
            out = [reshape(y, head, heads, n) for y, (heads, head) in zip(out, widths, strict=True)]
        return out[0], out[1], out[2]

    # ---- attention --------------------------------------------------------------------------------

    def attention(
        self, block: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None
    ) -> Tensor:
        """Store K and V, attend, project; the cache's kind follows from the block."""
        m, config = self.model, self.config
        cache, windowed = self.caches[block], m.windowed[block]
        k_rows, v_rows, mask = self.attention_inputs(windowed)
        k_rot, v_rot = self.rotation(windowed)
        if k_rot is not None:
            q, k = self._rotated(q, k_rot), self._rotated(k, k_rot)
        if v_rot is not None:
            v = self._rotated(v, v_rot)
        order = (q, k, v) if any(m.windowed) else (q, v, k)
        for t in order:
            self.graph.expand(t)
        heads = m.n_head_kv[block]
        self.graph.expand(self._store(cache.k, k, k_rows))
        assert cache.v is not None
        transposed = config.flash_attention == "off"
        if transposed:
            flat = reshape(cache.v, 1, cache.v.n_elements)
            rows = reshape(v, v.ne[0] * v.ne[1], v.ne[2]) if v.contiguous else ggml.cont(
                v, v.ne[0] * v.ne[1], v.ne[2]
            )  # fmt: skip
            self.graph.expand(ggml.set_rows(flat, reshape(rows, 1, rows.n_elements), v_rows))
        else:
            self.graph.expand(self._store(cache.v, v, v_rows))
        keys = self._keys(cache, m.head_k, heads)
        size, row = cache.cells, cache.v.ne[0]
        r = ggml.row_size
        if transposed:
            values = ggml.view(
                cache.v, (size, heads, m.head_v, self.set.n_streams),
                (r(config.v, size * m.head_v), r(config.v, size), r(config.v, size * row)),
            )  # fmt: skip
        else:
            values = ggml.view(
                cache.v, (m.head_v, heads, size, self.set.n_streams),
                (r(config.v, m.head_v), r(config.v, row), r(config.v, row * size)),
            )  # fmt: skip
        y = self.heads(q, keys, values, mask, sinks, None)
        if v_rot is not None:
            y = self._rotated(y, v_rot)
        return self.biased(
            mul_mat(self.need(block, "attn_output.weight"), y), self.get(block, "attn_output.bias")
        )

    def latent_attention(self, block: int, q: Tensor, k: Tensor, rank: int) -> Tensor:
        """Absorbed latent attention: V is the head of every K row, ``attn_v_b`` unfolds the result."""
        cache = self.caches[block]
        k_rows, _, mask = self.attention_inputs(False)
        for t in (q, k):
            self.graph.expand(t)
        self.graph.expand(self._store(cache.k, k, k_rows))
        keys = self._keys(cache, self.model.head_k, 1)
        values = ggml.view(keys, (rank, *keys.ne[1:]), keys.nb[1:])
        y = self.heads(q, keys, values, mask, None, self.need(block, "attn_v_b.weight"))
        return mul_mat(self.need(block, "attn_output.weight"), y)

    def _rotated(self, x: Tensor, rotation: Tensor) -> Tensor:
        n = rotation.ne[0]
        rows = x.n_elements // n
        flat = reshape(x, n, rows) if x.contiguous else ggml.cont(x, n, rows)
        return reshape(mul_mat(rotation, flat), *x.ne)

    def _store(self, cache: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        width = x.ne[0] * x.ne[1]
        values = ggml.view(x, (width, x.ne[2]), (x.nb[2],))
        if cache.ne[2] > 1:
            cache = reshape(cache, width, cache.ne[1] * cache.ne[2])
        return ggml.set_rows(cache, values, rows)

    def _keys(self, cache: LayerCache, head: int, heads: int) -> Tensor:
        kind, size = self.config.k, cache.cells
        width = cache.k.ne[0]
        strides = tuple(ggml.row_size(kind, n) for n in (head, width, width * size))
        return ggml.view(cache.k, (head, heads, size, self.set.n_streams), strides)

    def heads(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        sinks: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        """``build_attn_mha``: flash attention, or the scores in full."""
        transposed = v.nb[1] > v.nb[2]
        streams = k.ne[3]
        each = q.ne[2] // streams
        q = ggml.view(q, (q.ne[0], q.ne[1], each, streams), (q.nb[1], q.nb[2], q.nb[2] * each))
        q, k, v = (ggml.permute(t, 0, 2, 1, 3) for t in (q, k, v))
        if self.set.flash:
            if transposed:
                v = ggml.transpose(v)
            y = ggml.flash_attention(q, k, v, mask, sinks)
            if out is not None:
                y = mul_mat(out, ggml.permute(y, 0, 2, 1, 3))
                y = ggml.cont(ggml.permute(y, 0, 2, 1, 3))
            y = reshape(y, y.ne[0] * y.ne[1], y.ne[2] * y.ne[3])
        else:
            scores = like("SOFT_MAX", mul_mat(k, q), mask, sinks)
            if not transposed:
                v = ggml.cont(ggml.transpose(v))
            y = mul_mat(v, scores)
            if out is not None:
                y = mul_mat(out, y)
            y = ggml.permute(y, 0, 2, 1, 3)
            y = ggml.cont(y, y.ne[0] * y.ne[1], y.ne[2] * y.ne[3])
        if not self.config.kv_offload and not self.set.flash:
            y.target = 1
        self.graph.expand(y)
        return y

    # ---- feed-forward -----------------------------------------------------------------------------

    def ffn(self, block: int, x: Tensor, suffix: str = "") -> Tensor:
        up = mul_mat(self.need(block, f"ffn_up{suffix}.weight"), x)
        up = self.biased(up, self.get(block, f"ffn_up{suffix}.bias"))
        weight = self.get(block, f"ffn_gate{suffix}.weight")
        if weight is None:
            y = like("UNARY", up, param="SILU")
        else:
            gate = self.biased(mul_mat(weight, x), self.get(block, f"ffn_gate{suffix}.bias"))
            y = ggml.glu("SWIGLU", gate, up)
        y = mul_mat(self.need(block, f"ffn_down{suffix}.weight"), y)
        return self.biased(y, self.get(block, f"ffn_down{suffix}.bias"))

    def experts(self, block: int, x: Tensor, kind: str = "SWIGLU") -> Tensor:
        """``build_moe_ffn``: router, chosen experts, their weighted sum."""
        m, n = self.model, x.ne[1]
        used = m.n_expert_used
        logits = mul_mat(self.need(block, "ffn_gate_inp.weight"), x)
        logits = self.biased(logits, self.get(block, "ffn_gate_inp.bias"))
        probs = {
            "softmax": lambda: like("SOFT_MAX", logits),
            "sigmoid": lambda: like("UNARY", logits, param="SIGMOID"),
            "softmax_weight": lambda: logits,
            "sqrt_softplus": lambda: like("SQRT", like("UNARY", logits, param="SOFTPLUS")),
        }[m.gating]()
        choice = self.biased(probs, self.get(block, "exp_probs_b.bias"))
        if m.expert_groups > 1:
            choice = self._grouped(choice, n)
        ids = ggml.top_k(choice, used)
        weights = ggml.get_rows(reshape(probs, 1, m.n_expert, n), ids)
        if m.gating == "softmax_weight":
            weights = like("SOFT_MAX", reshape(weights, used, n))
            weights = reshape(weights, 1, used, n)
        if m.weights_norm:
            flat = reshape(weights, used, n)
            total = like("CLAMP", ggml.sum_rows(flat))
            weights = reshape(like("DIV", flat, total), 1, used, n)
        if m.weights_scale not in (0.0, 1.0):
            weights = like("SCALE", weights)
        self.graph.expand(weights)
        slots = self._slots(block, ids)
        x = reshape(x, m.n_embd, 1, n)

        def product(name: str, y: Tensor) -> Tensor:
            weight = self.need(block, f"{name}.weight")
            if slots is None:
                out = mul_mat_id(weight, y, ids)
            else:
                bank = Tensor(weight.type, (*weight.ne[:2], self.set.slots(block), 1))
                bank.place, bank.weight = GPU, True
                out = mul_mat_id(bank, y, slots)
            bias = self.get(block, f"{name}.bias")
            return out if bias is None else like("ADD_ID", out, bias, ids)

        if self.get(block, "ffn_gate_up_exps.weight") is not None:
            both = product("ffn_gate_up_exps", x)
            half = both.ne[0] // 2
            ne = (half, both.ne[1], both.ne[2])
            gate = ggml.view(both, ne, both.nb[1:3])
            up = ggml.view(both, ne, both.nb[1:3], half * 4)
            y = ggml.glu(kind, gate, up)
        else:
            up = product("ffn_up_exps", x)
            if self.get(block, "ffn_gate_exps.weight") is not None:
                y = ggml.glu(kind, product("ffn_gate_exps", x), up)
            else:
                y = like("UNARY", up, param="SILU")
        y = like("MUL", product("ffn_down_exps", y), weights)
        self.graph.expand(y)
        parts = [ggml.view(y, (m.n_embd, n), (y.nb[2],), i * y.nb[1]) for i in range(used)]
        for part in parts:
            self.graph.expand(part)
        total = parts[0]
        for part in parts[1:]:
            total = like("ADD", total, part)
            self.graph.expand(total)
        return ggml.cont(total) if used == 1 else total

    def _grouped(self, choice: Tensor, n: int) -> Tensor:
        """Only experts of the best groups can be chosen (DeepSeek V3)."""
        m = self.model
        each, groups = m.n_expert // m.expert_groups, m.expert_groups
        by_group = reshape(choice, each, groups, n)
        scores = ggml.get_rows(reshape(by_group, 1, each, groups, n), ggml.top_k(by_group, 2))
        sums = ggml.sum_rows(reshape(scores, *scores.ne[1:]))
        best = ggml.top_k(reshape(sums, *sums.ne[1:3]), m.expert_groups_used)
        kept = ggml.get_rows(by_group, best)
        masked = ggml.set_rows(like("FILL", by_group), kept, best)
        return reshape(masked, m.n_expert, n)

    def _slots(self, block: int, ids: Tensor) -> Tensor | None:
        """Where the expert cache holds the chosen experts; None where it is not asked."""
        slots, n = self.set.slots(block), ids.ne[1]
        if not slots or n > MAX_CACHED or min(n * ids.ne[0], self.model.n_expert) > slots:
            return None
        table = Tensor("I32", (1, self.model.n_expert, 1, 1), name="slot_map")
        table.place, table.weight = ggml.HOST, True
        flat = ids if ids.contiguous else ggml.cont(ids)
        found = ggml.get_rows(table, reshape(flat, flat.n_elements))
        found.target = 0
        return reshape(found, *ids.ne[:2])
