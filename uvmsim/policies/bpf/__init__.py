"""Compiled eBPF objects as page policies: ``./x.bpf.o`` in the place of a policy's name
(docs/bpf.md)."""
