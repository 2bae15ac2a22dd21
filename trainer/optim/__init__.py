"""The optimizer: AdamW for tables, head and scalars, Muon for matrices."""
