"""Sub-commands of the simulator; modules import only click at the top."""
