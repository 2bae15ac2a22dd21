"""What stands before every handler: who may call, and what may come in."""
