"""After each commit: wake the live streams, deliver webhooks."""
