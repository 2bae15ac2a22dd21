"""One page of any list."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list; pass `next` as `after` in the following request."""

    data: list[T]
    has_more: bool
    """Whether more items follow this page."""
    next: str | None
    """Value of `after` for the next page; null on the last page."""
