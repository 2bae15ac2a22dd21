"""The contract shared by trainer and server: standard library and pydantic only."""
