"""Arrow files that survive a kill: schemas, reading, writing."""
