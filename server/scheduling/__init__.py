"""Scheduler: decides from hours and priorities which work uses which device."""
