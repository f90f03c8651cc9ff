"""Questions over many runs: comparisons, sweeps, curves, benchmarks."""
