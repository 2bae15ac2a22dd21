"""Problem documents: how every refusal is answered."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from server.schemas.states import State


class ErrorItem(BaseModel):
    pointer: str
    """JSON pointer to the field."""
    detail: str


class Problem(BaseModel):
    """RFC 9457 (application/problem+json). `type` is stable; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Stable code, as a URN."""
    title: str
    """Short summary of the kind of problem."""
    status: int
    """HTTP status."""
    detail: str
    errors: list[ErrorItem] = []
    """Fields that are wrong."""
    hint: str | None = None
    """What to do."""
    state: State | None = None
    """State of the run when the request was refused."""
    legal: list[str] | None = None
    """Verbs that are legal in this state."""
