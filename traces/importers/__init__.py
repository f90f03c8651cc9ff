"""Importers: one module a format, found by its presence (`traces.importers.formats`)."""
