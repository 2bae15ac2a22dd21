"""Statistics of groups of runs: noise between seeds, compute multipliers, fits over a ladder. Pure.

Pure Python: the daemon imports no numerical library, and a group has a few dozen numbers.
"""
