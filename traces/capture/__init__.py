"""Recording routing from live runs."""
