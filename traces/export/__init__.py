"""Traces in other people's formats."""
