"""Scheduler of devices: hours, priorities and the one decision made of them."""
