"""Long fault campaigns: `python -m tests.soak --seconds N`. RESULTS.md is the published count."""
