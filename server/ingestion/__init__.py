"""Ingestion: applies journals to rows, exactly once."""
