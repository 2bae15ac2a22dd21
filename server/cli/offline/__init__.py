"""Commands that need no daemon: serve, service, rebuild, backup, restore, doctor.

The rest of the command line speaks HTTP.
"""
