"""Running the simulator's policies on a real GPU: empty until that engine is written."""
