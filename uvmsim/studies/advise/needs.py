"""The memory a configuration takes, by llama.cpp's own rules (`uvmsim.machine.llamacpp`), and whether
a machine has it.

Plans are exact and take some hundredths of a second each; a search asks for many configurations that
differ in placement only. `Memory` remembers plans, and tells beforehand what a configuration will
take: weights, KV cache and banks are counted, compute buffers are those of a plan like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp import LlamaConfig, LlamaModel, MemoryPlan, Placed, memory, place
from uvmsim.machine.llamacpp import reserve_for as reserve_of
from uvmsim.machine.llamacpp.ggml import GPU, HOST
from uvmsim.machine.llamacpp.kv_cache import layer_caches
from uvmsim.machine.llamacpp.moe_cache import ExpertCache, expert_cache
from uvmsim.machine.llamacpp.plan import Bytes
from uvmsim.studies.advise.candidate import Candidate

MIB, GIB = 2**20, 2**30
SYSTEM_BYTES = 2 * GIB
"""Allowance: host memory that the operating system and the program itself use."""
NEARLY = 64 * MIB
"""By how much compute buffers of configurations that differ in placement alone may differ."""
_PARTS = ("weights", "kv_cache", "compute", "output", "moe_cache")


@dataclass(frozen=True)
class Needs:
    """Bytes by kind: weights, kv_cache, compute, output, moe_cache."""

    vram: dict[str, int]
    """What llama.cpp allocates on the device."""
    ram: dict[str, int]
    """The same in host memory (mapped weights as if all were read), and ``system``."""
    reserve: int
    """Device bytes to be left for what llama.cpp does not count."""
    paged: bool = False
    """Unified memory: what exceeds the device lies in host memory."""

    @property
    def vram_bytes(self) -> int:
        return sum(self.vram.values())

    @property
    def ram_bytes(self) -> int:
        return sum(self.ram.values())

    def lacks(self, hw: Hardware) -> tuple[int, int]:
        """Device and host bytes that the machine has too few of; host memory unknown is enough."""
        over = 0 if not self.vram else self.vram_bytes + self.reserve - hw.free_bytes
        ram = 0 if hw.host_bytes is None else self.ram_bytes - hw.host_bytes
        if self.paged and over > 0:  # weights can be paged out, the rest is in use all the time
            out = min(over, self.vram["weights"])
            over, ram = over - out, ram + out if hw.host_bytes is not None else 0
        return max(over, 0), max(ram, 0)

    def fits(self, hw: Hardware) -> bool:
        return self.lacks(hw) == (0, 0)

    def on(self, hw: Hardware) -> Needs:
        """The same on a machine: under unified memory what exceeds the device is in host memory."""
        over = self.vram_bytes + self.reserve - hw.free_bytes
        if not self.paged or over <= 0:
            return self
        out = min(over, self.vram["weights"])
        vram = self.vram | {"weights": self.vram["weights"] - out}
        return replace(self, vram=vram, ram=self.ram | {"weights": self.ram["weights"] + out})

    def to_json(self) -> dict[str, Any]:
        return {
            "vram_bytes": self.vram_bytes, "ram_bytes": self.ram_bytes,
            "reserve_bytes": self.reserve, "vram": self.vram, "ram": self.ram,
        }  # fmt: skip


class Memory:
    """What configurations of one model take."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self._plans: dict[LlamaConfig, MemoryPlan] = {}
        self._needs: dict[LlamaConfig, Needs] = {}
        self._kept: dict[LlamaConfig, dict[str, int]] = {}
        self._placed: dict[Any, list[Placed]] = {}
        self._weights: dict[Any, dict[str, int]] = {}

    def plan(self, config: LlamaConfig) -> MemoryPlan:
        """llama.cpp's buffers. How the file is loaded bears on nothing but how weights in host memory
        are counted (`needs`). Raises `InputError` for models that are not known."""
        config = replace(config, mmap=False, unified_memory=False)
        if config not in self._plans:
            self._plans[config] = memory(self.model, config)
        return self._plans[config]

    def needs(self, c: Candidate) -> Needs:
        """What a configuration takes, exactly."""
        if c.config not in self._needs:
            plan = self.plan(c.config)
            host = plan.host
            if c.mapped:
                host = replace(
                    host, weights=sum(p.n_bytes for p in plan.placed if p.device == HOST)
                )
            self._needs[c.config] = _needs(c.config, plan.gpu, host)
        return self._needs[c.config]

    def fits(self, c: Candidate, hw: Hardware) -> bool:
        """Whether a machine has what a configuration takes."""
        return self.needs(c).fits(hw)

    # ---- beforehand -------------------------------------------------------------------------------

    def estimate(self, c: Candidate, like: Candidate) -> Needs:
        """`needs` without a plan of its own: exact but for compute buffers, which are ``like``'s."""
        config, known = c.config, self.plan(like.config)
        weights, kept = self._weights_of(config), self._kept_of(config)
        cache = self.cache(config)
        return _needs(
            config,
            Bytes(weights[GPU], kept[GPU], known.gpu.compute, 0, cache.device_bytes),
            Bytes(
                weights[HOST], kept[HOST], known.host.compute, known.host.output, cache.host_bytes
            ),
        )

    def cache(self, config: LlamaConfig) -> ExpertCache:
        """The banks of an expert cache. Raises `InputError` where the budget is below one token's."""
        return expert_cache(self.model, config, self.placed(config))

    def placed(self, config: LlamaConfig) -> list[Placed]:
        """Every tensor's place."""
        key = (config.n_gpu_layers, config.n_cpu_moe, config.overrides, config.gpu)
        if key not in self._placed:
            self._placed[key] = place(self.model, config)
        return self._placed[key]

    def _weights_of(self, config: LlamaConfig) -> dict[str, int]:
        key = (config.n_gpu_layers, config.n_cpu_moe, config.overrides, config.gpu)
        if key not in self._weights:
            sums = {GPU: 0, HOST: 0}
            for p in self.placed(config):
                sums[p.device] += p.stored
            self._weights[key] = sums
        return self._weights[key]

    def _kept_of(self, config: LlamaConfig) -> dict[str, int]:
        key = replace(config, n_cpu_moe=0, overrides=(), moe_cache_mib=0, mmap=False)
        if key not in self._kept:
            sums = {GPU: 0, HOST: 0}
            for cache in layer_caches(self.model, config):
                sums[cache.device] += cache.stored
            self._kept[key] = sums
        return self._kept[key]


def _needs(config: LlamaConfig, gpu: Bytes, host: Bytes) -> Needs:
    ram = {k: getattr(host, k) for k in _PARTS} | {"system": SYSTEM_BYTES}
    if not config.gpu:
        return Needs({}, ram, 0)
    vram = {k: getattr(gpu, k) for k in _PARTS if k != "output"}
    return Needs(vram, ram, reserve_of(config), config.unified_memory)


def least_that_fits(
    ns: list[int], lacking: Callable[[int], int], fits: Callable[[int], bool]
) -> list[int]:
    """Those of ``ns`` (ascending: ever less on the device) that fit. ``lacking`` tells roughly how many
    bytes are missing; at the lower end ``fits``, which takes longer, decides."""
    found = [n for n in ns if not lacking(n)]
    if not found:
        return [n for n in ns[-1:] if lacking(n) < NEARLY and fits(n)]
    while found and not fits(found[0]):
        found.pop(0)
    for n in reversed(ns[: ns.index(found[0])] if found else []):
        if lacking(n) >= NEARLY or not fits(n):
            break
        found.insert(0, n)
    return found
