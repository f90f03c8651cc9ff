"""A search for a policy: tried on one part of the traces, chosen by another, reported on a third.

`split` cuts traces, `space` says what may be tried, `proposals` what is tried next, `arena` runs and
remembers it, `halving` gives the better ones more tokens, `explain` takes the winner apart.
"""
