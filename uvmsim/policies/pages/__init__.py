"""Policies of the paging driver, one file each: what gpu_ext's eBPF programs do."""
