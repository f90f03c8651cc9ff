"""The words every room uses of a run: job, plan, timeline, outcome."""
