"""What runs: models, hardware, and how long a machine's own work takes."""
