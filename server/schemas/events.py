"""Events, in the order in which they happened."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class EventView(BaseModel):
    id: int
    run: str | None
    job: str | None
    attempt: int | None
    kind: str
    level: Literal["info", "warning", "error"]
    """Severity."""
    step: int | None
    message: str
    data: dict[str, Any]
    """Details of the event; the keys depend on its kind."""
    unix_seconds: float
