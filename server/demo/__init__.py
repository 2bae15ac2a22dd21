"""`traind demo`: trains, pauses, resumes, extends and reports in minutes, with its own daemon."""
