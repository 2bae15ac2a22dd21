"""Ingestion: journals become rows, exactly once."""
