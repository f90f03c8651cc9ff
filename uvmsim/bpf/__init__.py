"""Compiled eBPF objects: read, checked, and translated to functions that Numba compiles.

Of the kernel: Documentation/bpf/standardization/instruction-set.rst (instructions),
Documentation/bpf/btf.rst (types), tools/lib/bpf/libbpf.c (relocations). What the driver hands to a
program is not known here: see `uvmsim.policies.bpf`.
"""
