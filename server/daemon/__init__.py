"""The daemon's process, and the systemd unit that starts it."""
