"""What is paged: a Mixture-of-Experts model as bytes and weights a layer.

A `Model` comes from a preset or a TOML file (`uvmsim.machine.model_spec`), from a GGUF file, or from
the `ModelInfo` a trace carries. Sizes are of the weights as stored (quantised).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.models.info import ModelInfo
from uvmsim.machine.model_spec import TYPES, ModelSpec, role_of, tensors_of

KV_BYTES = 2
"""Bytes of one KV-cache element: llama.cpp's default cache type is f16."""
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What a KV cache can be kept in (llama.cpp common/arg.cpp, kv_cache_types)."""


@dataclass(frozen=True)
class Model:
    """Shape, bytes and weight counts of a model; everything immutable.

    Tuples a MoE layer have ``len(moe_layers)`` entries, tuples a block ``n_layers``.
    """

    name: str
    architecture: str
    n_layers: int
    moe_layers: tuple[int, ...]
    """Block indices with routed experts, ascending."""
    n_experts: int
    top_k: int
    quantisation: str
    """Type of the expert matrices; several joined by ``/`` where gate, up and down differ."""
    expert_bytes: tuple[int, ...]
    """Bytes of ONE routed expert (gate, up, down, biases), an entry a MoE layer."""
    dense_bytes: tuple[int, ...]
    """Bytes of a block without its routed experts, an entry a block."""
    output_bytes: int
    """Final norm and LM head, read once a step (a tied head counts here)."""
    embedding_bytes: int
    """Token embedding table; 0 where it is the LM head."""
    n_embd: int | None
    n_ff_expert: int | None
    n_vocab: int | None
    kv_bytes_per_token: int
    """f16 KV cache of one token over all blocks, as if every block kept every position
    (sliding-window blocks keep fewer; MLA keeps the compressed latent)."""
    expert_params: tuple[int, ...]
    """Weights of one expert, an entry a MoE layer."""
    dense_params: tuple[int, ...]
    output_params: int
    embedding_params: int
    summary: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    """Where the numbers come from, by part of the description."""
    tensors: tuple[tuple[str, str, int], ...] = ()
    """``(name, type, bytes)`` in file order; empty where unknown or scaled."""
    routing_sigma: tuple[float, float] | None = None
    """Unevenness of random tokens' routing in prefill and decode (`model_spec.Routing`)."""
    described_by: str = field(default="", repr=False, compare=False)
    """The preset or file it was read from; empty where it is not that model any more (`scaled`)."""

    # ---- where a model comes from -------------------------------------------------------------

    @classmethod
    def load(cls, spec: str) -> Model:
        """A preset name, a ``.toml`` description or a ``.gguf`` file.

        Raises `InputError` where it is none of them, or does not describe an MoE model.
        """
        from uvmsim.machine.descriptions import find, read

        path = find(spec, "models", "model", (".toml", ".gguf"))
        if path.suffix.lower() == ".gguf":
            from traces.models.gguf import describe

            made = cls.from_info(describe(path))
        else:
            made = cls.from_spec(read(path, ModelSpec))
        return replace(made, described_by=str(path))

    @classmethod
    def list_presets(cls) -> dict[str, str]:
        """Preset name -> one line saying what it is."""
        from uvmsim.machine.descriptions import preset_paths, read

        return {name: read(p, ModelSpec).summary for name, p in preset_paths("models").items()}

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Model:
        """Bytes and weights computed from a shape."""
        s, e, t = spec.shape, spec.experts, spec.types
        tensors = list(tensors_of(spec))
        moe = tuple(range(e.n_dense_layers, s.n_layers))
        nbytes = _by_role(((x.name, x.nbytes) for x in tensors), s.n_layers)
        params = _by_role(((x.name, x.params) for x in tensors), s.n_layers)
        tied = s.tied_embeddings
        head = (nbytes.embedding, params.embedding) if tied else (0, 0)
        kinds = dict.fromkeys((t.gate or t.experts, t.up or t.experts, t.down or t.experts))
        sources = {"shape": s.source, "experts": e.source, "attention": spec.attention.source}
        return cls(
            name=spec.name,
            architecture=spec.architecture,
            n_layers=s.n_layers,
            moe_layers=moe,
            n_experts=e.n_experts,
            top_k=e.top_k,
            quantisation="/".join(kinds),
            expert_bytes=tuple(nbytes.expert[i] // e.n_experts for i in moe),
            dense_bytes=tuple(nbytes.dense),
            output_bytes=nbytes.output + head[0],
            embedding_bytes=0 if tied else nbytes.embedding,
            n_embd=s.n_embd,
            n_ff_expert=e.n_ff_expert,
            n_vocab=s.n_vocab,
            kv_bytes_per_token=s.n_layers * spec.attention.kv_elements() * KV_BYTES,
            expert_params=tuple(params.expert[i] // e.n_experts for i in moe),
            dense_params=tuple(params.dense),
            output_params=params.output + head[1],
            embedding_params=0 if tied else params.embedding,
            summary=spec.summary,
            sources=sources | {"types": t.source},
            tensors=tuple((x.name, x.type, x.nbytes) for x in tensors),
            routing_sigma=(spec.routing.prefill_sigma, spec.routing.decode_sigma)
            if spec.routing
            else None,
        )

    @classmethod
    def from_info(
        cls, info: ModelInfo, *, expert_bytes: int | None = None, need_experts: bool = True
    ) -> Model:
        """The description a trace or a GGUF file carries. Without ``need_experts`` one
        that has none will do.

        ``expert_bytes`` says (or overrides, by `scaled`) the bytes of one expert. Where a trace
        knows the shape alone, dense blocks, head and embedding then count as 0 bytes. Weight
        counts come from the tensors' types where listed, else an expert's from
        ``3 * n_embd * n_ff_expert``, else from bytes and the quantisation's bits a weight (8 bits
        where that is unknown).

        Raises `InputError` where the size of an expert is unknown.
        """
        n_moe = len(info.moe_layers)
        if n_moe == 0 and need_experts:
            raise InputError(f"{info.name}: no MoE layers, so no experts to page")
        if info.expert_bytes is None and expert_bytes is None:
            raise InputError(
                f"the trace knows the shape of {info.name} but not its bytes; "
                "give `model` (a preset, .toml or .gguf) or `expert_size`"
            )
        known = info.expert_bytes is not None
        each = info.expert_bytes if info.expert_bytes is not None else (expert_bytes or 0,) * n_moe
        dense = info.dense_bytes or (0,) * info.n_layers
        if len(each) != n_moe or len(dense) != info.n_layers:
            raise InputError(
                f"{info.name}: {len(each)} expert sizes for {n_moe} MoE layers and {len(dense)} "
                f"dense sizes for {info.n_layers} blocks; the description is inconsistent"
            )
        head, table = info.output_bytes or 0, info.embedding_bytes or 0
        weights = _info_params(info, each, dense, head, table)
        missing = [k for k in ("dense_bytes", "output_bytes") if getattr(info, k) is None]
        sources = {"model": info.source or "the trace's metadata"}
        if missing:
            sources["note"] = f"{' and '.join(missing)} unknown: counted as 0"
        model = cls(
            name=info.name,
            architecture=info.architecture,
            n_layers=info.n_layers,
            moe_layers=tuple(info.moe_layers),
            n_experts=info.n_experts,
            top_k=info.top_k,
            quantisation=info.quantisation or "unknown",
            expert_bytes=tuple(each),
            dense_bytes=tuple(dense),
            output_bytes=head,
            embedding_bytes=table,
            n_embd=info.n_embd,
            n_ff_expert=info.n_ff_expert,
            n_vocab=info.n_vocab,
            kv_bytes_per_token=info.kv_bytes_per_token or 0,
            expert_params=tuple(weights.expert),
            dense_params=tuple(weights.dense),
            output_params=weights.output,
            embedding_params=weights.embedding,
            sources=sources,
            tensors=tuple((n, str(v[0]), int(v[1])) for n, v in info.tensors.items()),
        )
        return model.scaled(expert_bytes) if known and expert_bytes is not None else model

    def scaled(self, expert_bytes: int) -> Model:
        """The same shape with every size (and weight count) scaled together, so that the largest
        expert has ``expert_bytes``: a small model's routing at a large model's sizes.

        The KV cache grows with the square root: weights go with the square of the width, it with
        the width.
        """
        if expert_bytes <= 0:
            raise InputError(f"an expert of {expert_bytes} bytes cannot be; give a size above 0")
        largest = max(self.expert_bytes)

        def one(n: int) -> int:
            return (n * expert_bytes + largest // 2) // largest

        def many(xs: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(one(x) for x in xs)

        return replace(
            self,
            expert_bytes=many(self.expert_bytes),
            dense_bytes=many(self.dense_bytes),
            output_bytes=one(self.output_bytes),
            embedding_bytes=one(self.embedding_bytes),
            kv_bytes_per_token=round(self.kv_bytes_per_token * sqrt(expert_bytes / largest)),
            expert_params=many(self.expert_params),
            dense_params=many(self.dense_params),
            output_params=one(self.output_params),
            embedding_params=one(self.embedding_params),
            described_by="",
            sources=self.sources | {"scaled": f"largest expert {largest} -> {expert_bytes} bytes"},
            tensors=(),
        )

    def with_kv(self, kind: str) -> Model:
        """The same model with another type of KV cache (``--kv-type q8_0``; llama.cpp's ``-ctk`` and
        ``-ctv`` in one): room for a token, and bytes that attention reads, in proportion to the f16 of
        descriptions. Raises `InputError` where the type is none of `KV_TYPES`.
        """
        if kind.lower() not in KV_TYPES:
            raise InputError(f"{kind}: must be one of {', '.join(KV_TYPES)}", argument="kv_type")
        count, nbytes = TYPES[kind.upper()]
        scaled = -(-self.kv_bytes_per_token * nbytes // (count * KV_BYTES))
        told = self.sources if kind.lower() == "f16" else self.sources | {"kv_type": kind.lower()}
        return replace(self, kv_bytes_per_token=scaled, sources=told)

    # ---- totals -------------------------------------------------------------------------------

    @property
    def moe_bytes(self) -> int:
        """All routed experts of all layers."""
        return self.n_experts * sum(self.expert_bytes)

    @property
    def total_bytes(self) -> int:
        """All weights, the embedding table included."""
        return self.moe_bytes + sum(self.dense_bytes) + self.output_bytes + self.embedding_bytes

    @property
    def resident_bytes(self) -> int:
        """What stays on the GPU whatever happens to experts: dense blocks and head (llama.cpp
        keeps the embedding table in host memory)."""
        return sum(self.dense_bytes) + self.output_bytes

    @property
    def active_bytes_per_token(self) -> int:
        """Weights one decoded token reads: dense blocks, head, ``top_k`` experts a MoE layer."""
        return self.resident_bytes + self.top_k * sum(self.expert_bytes)

    @property
    def total_params(self) -> int:
        experts = self.n_experts * sum(self.expert_params)
        return experts + sum(self.dense_params) + self.output_params + self.embedding_params

    @property
    def active_params(self) -> int:
        """Weights one decoded token multiplies with (embedding look-up excluded)."""
        return self.top_k * sum(self.expert_params) + sum(self.dense_params) + self.output_params

    # ---- compute: two operations a weight and token; attention over the context is not counted --

    def expert_flops(self, moe_index: int, tokens: int = 1) -> int:
        """Operations of one expert of the ``moe_index``-th MoE layer on ``tokens`` rows."""
        return 2 * self.expert_params[moe_index] * tokens

    def dense_flops(self, block: int, tokens: int = 1) -> int:
        """Operations of a block without its routed experts."""
        return 2 * self.dense_params[block] * tokens

    def output_flops(self, tokens: int = 1) -> int:
        """Operations of the LM head on the ``tokens`` rows that need logits."""
        return 2 * self.output_params * tokens

    # ---- checks and output --------------------------------------------------------------------

    def check_fits(self, trace: Any) -> None:
        """`InputError` where a trace's shape is not this model's.

        ``trace`` is a `ModelInfo` or anything that carries one as ``.model``. The i-th MoE layer
        of a trace is the i-th of the model: block numbers may differ (a routing dump often counts
        MoE layers alone), their number, the experts and the top-k may not.
        """
        info: ModelInfo = getattr(trace, "model", trace)
        want = (len(info.moe_layers), info.n_experts, info.top_k)
        have = (len(self.moe_layers), self.n_experts, self.top_k)
        if want == have:
            return
        fits = [n for n in _presets_with(want) if n != self.name]
        mend = f"`model` {fits[0]} fits" if fits else "give the model that made the trace (`model`)"
        raise InputError(
            f"the trace ({info.name}) has {_shape(want)}, but model {self.name} has "
            f"{_shape(have)}; {mend}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every field except the tensor list, and the totals."""
        left_out = ("tensors", "described_by")
        d = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in left_out}
        totals = ("total_bytes", "moe_bytes", "resident_bytes", "active_bytes_per_token")
        d |= {k: getattr(self, k) for k in (*totals, "total_params", "active_params")}
        d["n_tensors"] = len(self.tensors)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}


@dataclass
class _Roles:
    expert: list[int]
    """A block's whole bank of experts (an entry a block)."""
    dense: list[int]
    output: int = 0
    embedding: int = 0


def _by_role(sizes: Iterable[tuple[str, int]], n_layers: int) -> _Roles:
    """Sums over tensors, by what they are; blocks past ``n_layers`` (MTP heads) are left out."""
    out = _Roles([0] * n_layers, [0] * n_layers)
    for name, n in sizes:
        role, block = role_of(name)
        if role == "embedding":
            out.embedding += n
        elif role == "output":
            out.output += n
        elif block < n_layers:
            (out.expert if role == "expert" else out.dense)[block] += n
    return out


def _info_params(
    info: ModelInfo, experts: tuple[int, ...], dense: tuple[int, ...], head: int, table: int
) -> _Roles:
    """Weight counts of a described model: ``expert`` holds ONE expert's, an entry a MoE layer."""
    if info.tensors and all(str(v[0]).upper() in TYPES for v in info.tensors.values()):
        sizes = ((n, _weights(int(v[1]), str(v[0]))) for n, v in info.tensors.items())
        roles = _by_role(sizes, info.n_layers)
        roles.expert = [roles.expert[i] // info.n_experts for i in info.moe_layers]
        if table == 0:  # tied: the head is the embedding table
            roles.output, roles.embedding = roles.output + roles.embedding, 0
        return roles
    kind = info.quantisation or ""
    shape = 3 * info.n_embd * info.n_ff_expert if info.n_embd and info.n_ff_expert else None
    one = [shape if shape is not None else _weights(b, kind) for b in experts]
    rest = [_weights(b, kind) for b in dense]
    return _Roles(one, rest, _weights(head, kind), _weights(table, kind))


def _weights(nbytes: int, type_: str) -> int:
    weights, size = TYPES.get(type_.upper(), (1, 1))
    return nbytes * weights // size


def _presets_with(shape: tuple[int, int, int]) -> list[str]:
    from uvmsim.machine.descriptions import preset_paths, read

    def of(path: Path) -> tuple[int, int, int]:
        s = read(path, ModelSpec)
        layers = s.shape.n_layers - s.experts.n_dense_layers
        return (layers, s.experts.n_experts, s.experts.top_k)

    return [name for name, path in preset_paths("models").items() if of(path) == shape]


def _shape(t: tuple[int, int, int]) -> str:
    return f"{t[0]} MoE layers of {t[1]} experts, top-{t[2]}"
