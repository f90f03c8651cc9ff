"""Sweeps: a grid of runs, written down as they finish.

`config` reads what is asked for, `cells` makes it a list of cells with stable keys, `runner` runs
cells, `local` and `cluster` spread them over processes and machines, `store` keeps the rows.
"""
