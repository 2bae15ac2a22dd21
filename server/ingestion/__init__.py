"""Journals become rows, exactly once."""
