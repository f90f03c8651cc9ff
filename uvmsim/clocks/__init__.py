"""Time: engines give a plan (`uvmsim.runs.plan`) a clock."""
