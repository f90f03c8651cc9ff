"""Holding the simulator against a real machine: predicted first, then measured, then compared."""
