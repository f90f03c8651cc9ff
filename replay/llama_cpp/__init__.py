"""llama.cpp itself, run and timed: what its engine profile is calibrated on and held against.

Everything that loads a libllama happens in a process of its own (`worker`), started by `process`: a
CUDA build needs a fresh one, and a crash there is a result here.
"""
