"""States of a run: current and desired."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    created = "created"
    queued = "queued"
    preparing = "preparing"
    starting = "starting"
    running = "running"
    recovering = "recovering"
    pausing = "pausing"
    paused = "paused"
    cancelling = "cancelling"
    cancelled = "cancelled"
    completed = "completed"
    failed = "failed"


class Desired(StrEnum):
    created = "created"
    running = "running"
    paused = "paused"
    cancelled = "cancelled"
