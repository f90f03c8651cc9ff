"""llama-bench, simulated: its tests, its random tokens, its table."""
