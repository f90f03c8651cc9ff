"""What to run: the fastest configuration of llama.cpp that fits a machine (docs/advise.md)."""
