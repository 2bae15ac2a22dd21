"""Offline tools for a data directory without a running daemon: backup, restore, rebuild."""
