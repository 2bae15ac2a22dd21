"""Reference implementation: plain, obviously correct model, loss, optimizer step and packing.

Nothing here is fast and nothing is shared with `trainer`: it is the shortest form of the recipe,
against which tests compare the trainer.
"""
