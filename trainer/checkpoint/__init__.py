"""Checkpoints: the store on disk, and the writers that fill it."""
