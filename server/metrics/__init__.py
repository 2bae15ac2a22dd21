"""The format of stored curves: rollups, counters, sparklines, and Parquet."""
