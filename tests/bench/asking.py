"""Response time (p99) of repeated requests over one keep-alive connection.

Uses http.client, because the client's own time counts too.
"""

from __future__ import annotations

import http.client
import statistics
import time
from urllib.parse import urlsplit

ASKED = 300


def p99(what: str, url: str, path: str, headers: dict[str, str] | None = None) -> float:
    """99th percentile of the response time in milliseconds, from the request to the last byte."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    _milliseconds(connection, path, headers or {})  # the first connects
    took = sorted(_milliseconds(connection, path, headers or {}) for _ in range(ASKED))
    connection.close()
    found = took[int(0.99 * ASKED) - 1]
    print(f"{what}: median {statistics.median(took):.1f} ms, p99 {found:.1f} ms", flush=True)
    return found


def _milliseconds(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> float:
    began = time.perf_counter()
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"GET {path} was answered with {answer.status}")
    return 1e3 * (time.perf_counter() - began)
