"""Alembic revisions of the database schema. A released revision is never edited; a new one is
appended to the tuple.
"""

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
HEAD = REVISIONS[-1]
