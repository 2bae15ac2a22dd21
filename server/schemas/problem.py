"""Problem documents: the body of every error response."""

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
    """Invalid fields of the request."""
    hint: str | None = None
    """Advice: what to do about the problem."""
    state: State | None = None
    """State of the run when the request was refused."""
    legal: list[str] | None = None
    """Verbs that are possible in this state."""
