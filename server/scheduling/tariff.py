"""Prices of electricity from a file or a URL, for hours that depend on them.

The source is a JSON list of {"start": time, "end": time, "price": per kWh}, times in ISO 8601 and
UTC if they have no offset. The last prices stay in force while the source cannot be read; a rule
with a price limit is closed at a time without a price.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from server.scheduling.hours import OpenStretch, Price

REFRESH_SECONDS = 900.0
TIMEOUT_SECONDS = 10.0
MAX_BYTES = 4_000_000

log = logging.getLogger("traind.scheduling")


class TariffEntry(BaseModel):
    """One price of the source; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    start: datetime
    end: datetime
    price: float


_ENTRIES = TypeAdapter(list[TariffEntry])


class Tariff:
    """Prices of one source, refreshed every REFRESH_SECONDS."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.prices: Sequence[Price] = ()
        self.problem: str | None = None
        self._read_at = float("-inf")

    def refresh(self, now: float) -> None:
        """Read the source if it is due. `now`: on a monotonic clock. Never raises."""
        if now - self._read_at < REFRESH_SECONDS:
            return
        self._read_at = now
        try:
            self.prices, self.problem = parse(_fetch(self.source)), None
        except (OSError, ValueError) as error:
            self.problem = f"the tariff {self.source} cannot be read: {_first_line(error)}"
            log.warning("%s", self.problem)


def parse(text: bytes) -> list[Price]:
    """Parse the list of prices, in order of time. Raises ValueError."""
    entries = _ENTRIES.validate_json(text)
    found = [Price(OpenStretch(_epoch(e.start), _epoch(e.end)), e.price) for e in entries]
    if wrong := [price for price in found if price.stretch.end <= price.stretch.begin]:
        begin = datetime.fromtimestamp(wrong[0].stretch.begin, UTC)
        raise ValueError(f"the price from {begin.isoformat()} ends before it begins")
    return sorted(found, key=lambda price: price.stretch)


def _epoch(at: datetime) -> float:
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _fetch(source: str) -> bytes:
    if not source.startswith(("http://", "https://")):
        path = Path(source).expanduser()
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    return _fetch_url(source)


def _fetch_url(url: str) -> bytes:
    """Download a tariff. Raises OSError, ValueError."""
    import httpx  # imported here: it costs the daemon 10 MB

    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_SECONDS, follow_redirects=True) as answer:
            answer.raise_for_status()
            return _limited(answer.iter_bytes())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error)) from error


def _limited(parts: Iterable[bytes]) -> bytes:
    body = bytearray()
    for part in parts:
        body += part
        if len(body) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    return bytes(body)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error).splitlines()[0] if str(error) else type(error).__name__
