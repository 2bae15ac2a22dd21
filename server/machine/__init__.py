"""This machine: its devices, what they read now, and what they did before."""
