"""Prometheus exposition: reads rows, and renders each run's lines once per change."""
