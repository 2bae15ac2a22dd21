"""SQLite by the book: opened, migrated, backed up, made anew; the tables."""
