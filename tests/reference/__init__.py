"""The plain, obviously right version of model, loss and optimizer step, and of the packing.

Nothing here is fast and nothing is shared with `trainer`: it says in the shortest way what the
recipe is, so that the trainer can be held against it.
"""
