"""Checkpoints: the store on disk, and its writers."""
