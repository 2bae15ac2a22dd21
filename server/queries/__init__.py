"""Rows become answers."""
