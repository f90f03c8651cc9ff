"""What learning policies share: tokens and what followed them, sequences, features, weights."""
