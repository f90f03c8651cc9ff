"""Mechanisms: how a missing byte is served. One file each, found by its presence."""

from uvmsim.mechanisms.registry import mechanism, mechanisms, planned

__all__ = ["mechanism", "mechanisms", "planned"]
