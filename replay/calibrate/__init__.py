"""Measuring a machine: from copies and kernels to a hardware profile the simulator reads."""
