"""Page policies that change with the phase: ``phase:PREFILL_POLICY,DECODE_POLICY``.

Prefill sweeps over nearly all experts, decode reuses a sparse set: what is best for one is not for
the other. Instead of a page policy the prefill can be ``copy-used``: the experts a micro-batch uses are
copied to scratch memory, as llama.cpp does for experts that live with the CPU, and paging stays out
of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from traces.errors import InputError
from uvmsim.policies.pages.registry import PagePolicySpec, pages_of, parse_pages

COPY_USED = "copy-used"
PREFIX = "phase:"


@dataclass(frozen=True)
class PhasedPolicy:
    """What pages in prefill and in decode; the same object where it is one policy."""

    name: str
    prefill: PagePolicySpec | None
    """None: `COPY_USED`."""
    decode: PagePolicySpec

    @property
    def needs(self) -> frozenset[str]:
        """Of a trace: nothing."""
        return frozenset()

    @property
    def files(self) -> tuple[str, ...]:
        """Users' own files among them."""
        return (*(self.prefill.files if self.prefill else ()), *self.decode.files)

    @property
    def copies(self) -> bool:
        """Whether a prefill copies its experts."""
        return self.prefill is None


def phased_of(policy: Any) -> PhasedPolicy:
    """As `parse_phased`, of a name, or of a class or an instance for both phases."""
    if isinstance(policy, PhasedPolicy):
        return policy
    if isinstance(policy, str):
        return parse_phased(policy)
    spec = pages_of(policy)
    return PhasedPolicy(spec.name, spec, spec)


def parse_phased(text: str) -> PhasedPolicy:
    """A page policy, or one for each phase; raises `InputError`."""
    if not text.startswith(PREFIX):
        if text == COPY_USED:
            raise InputError(
                f"page policy {COPY_USED}: for a prefill; write phase:{COPY_USED},POLICY"
            )
        spec = parse_pages(text)
        return PhasedPolicy(text, spec, spec)
    parts = text[len(PREFIX) :].split(",")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"page policy {text!r}: expected phase:PREFILL_POLICY,DECODE_POLICY")
    first, second = parts
    if second == COPY_USED:
        raise InputError(f"page policy {text!r}: {COPY_USED} is for the prefill only")
    decode = parse_pages(second)
    if first == second:
        return PhasedPolicy(text, decode, decode)
    return PhasedPolicy(text, None if first == COPY_USED else parse_pages(first), decode)
