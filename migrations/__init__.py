"""The schema's history. A released revision is never edited; a new one is added to the tuple."""

REVISIONS = ("0001", "0002")
HEAD = REVISIONS[-1]
