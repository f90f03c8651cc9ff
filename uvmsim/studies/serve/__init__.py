"""Requests on a server: `uvmsim serve`."""
