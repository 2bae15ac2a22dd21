"""What Prometheus is told: rows are read, and each run's lines are written once for each change."""
