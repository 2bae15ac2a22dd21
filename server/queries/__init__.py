"""Read queries: rows become API answers."""
