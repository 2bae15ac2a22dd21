"""One page of any list."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list; `next` goes into `after` of the following request."""

    data: list[T]
    has_more: bool
    next: str | None
