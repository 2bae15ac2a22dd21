"""What follows a commit: readers of streams are woken, webhooks are delivered."""
