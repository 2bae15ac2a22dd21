"""Supervision: reconciles rows with processes, tick by tick."""
