"""Reports of a run: content (answer), queries, and rendering."""
