"""Sub-commands of the traces package; modules import only click at the top."""
