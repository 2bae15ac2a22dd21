"""Storage formats of curves: rollups, counters, sparklines, Parquet."""
