"""This machine: devices, live readings, kernel log, measured throughput."""
