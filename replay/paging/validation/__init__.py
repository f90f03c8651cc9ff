"""The page model held against the driver: predicted first, then cold runs, then compared."""
