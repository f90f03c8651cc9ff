"""Time: engines give a plan (`uvmsim.memory.plan`) a clock."""
