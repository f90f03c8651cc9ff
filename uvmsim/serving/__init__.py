"""A server under load: which requests share a forward pass, and when each token comes out."""
