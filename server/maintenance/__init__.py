"""Offline tools on a data directory that no daemon serves."""
