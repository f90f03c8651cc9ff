"""What a trace or a GGUF file says of a model: shape and bytes."""
