"""A server under load: which requests share a forward pass, when each token comes out, and what the
client measures of it."""
