"""Rows against processes: what each tick sees, decides and does."""
