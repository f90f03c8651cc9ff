"""The paging driver of a real card, measured: known touches of managed memory, what the driver did for
them event by event, and the constants that explain how long it took."""
