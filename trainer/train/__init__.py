"""The training loop and everything it calls at a step boundary."""
