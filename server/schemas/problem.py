"""Problem documents: how every refusal is answered."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from server.schemas.states import State


class ErrorItem(BaseModel):
    pointer: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 (application/problem+json). `type` is stable; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    errors: list[ErrorItem] = []
    hint: str | None = None
    state: State | None = None
    legal: list[str] | None = None
