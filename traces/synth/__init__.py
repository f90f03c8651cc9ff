"""Routing that nobody recorded, with measured skew and locality."""
