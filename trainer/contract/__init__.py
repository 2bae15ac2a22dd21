"""The language that trainer and server share: standard library and pydantic only."""
