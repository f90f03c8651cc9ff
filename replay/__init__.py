"""Running the simulator's policies on a real GPU. Empty until the GPU engine lands (see CHANGELOG.md)."""
