"""Limits: inputs at and beyond every limit: no 5xx, little memory, no client is locked out.

Five rounds in turn: spec fields at their limits in pairs and triples, bodies with many keys,
sockets that never read, small pickles, and realistic data folders.
"""

from __future__ import annotations

import json
import random
import socket
import tempfile
import time
import tracemalloc
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from server.guard import bodies, connections
from server.guard.connections import Connection
from tests.server.asgi import Asgi
from tests.server.live_server import serving, until
from tests.server.spec_edges import body_of, edges
from tests.soak import folders
from tests.soak.counts import Budget, Counts

MANY_BYTES = 48 << 20  # Python memory for one request; 76 MB without a limit on keys
PICKLE_BYTES = 64 << 20
ANSWER_SECONDS = 10.0
PLACES = 40  # concurrent connections; low, so that few sockets use them up
PIPELINED = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100


def run(budget: float, seed: int) -> Counts:
    counts, draw, left = Counts("limits", seed), random.Random(seed), Budget(budget)
    with tempfile.TemporaryDirectory(prefix="soak-limits-") as place:
        asgi = Asgi(Path(place) / "daemon")
        try:
            while left.has_more():
                _edges(asgi, counts, draw)
                _bodies(asgi, counts, draw)
                _sockets(asgi, counts)
                _pickles(Path(place), counts, draw)
                folders.try_one(Path(place), counts, draw)
        finally:
            asgi.close()
    return counts


def control(seed: int) -> Counts:
    """Without the limits: each round must show a failure."""
    from trainer.data import splits, torch_archive

    counts, draw = Counts("limits", seed), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-limits-") as place:
        asgi = Asgi(Path(place) / "daemon")
        try:
            with patch("trainer.contract.plan.horizon.MAX_STEPS", 10**40), patch(
                "trainer.contract.plan.horizon.MAX_TOKENS", 10**60
            ):  # fmt: skip
                _ask_edges(asgi, counts, [("horizon.flops", 1e30)])
            with patch.object(bodies, "MAX_KEYS", 10**9):
                _ask_many(asgi, counts, _unknown_keys(75_000))
            with patch.object(Connection, "_least_useful", lambda self: self):
                _sockets(asgi, counts)
            with patch.object(torch_archive, "_check_opcodes", lambda content: None):
                _load_pickle(Path(place), counts, _bytearray(200 << 20))
            with patch.object(splits, "kind_of", lambda name: None):
                folders.check_splits(Path(place), counts, draw)
        finally:
            asgi.close()
    return counts


# --- the spec ------------------------------------------------------------------------------------


def _edges(asgi: Asgi, counts: Counts, draw: random.Random, number: int = 40) -> None:
    pool = edges()
    for _ in range(number):
        _ask_edges(asgi, counts, draw.sample(pool, draw.choice((2, 3))))


def _ask_edges(asgi: Asgi, counts: Counts, asked: list[tuple[str, Any]]) -> None:
    answer = asgi.post("/v1/runs", body_of("edge", *asked))
    counts.add("specs at their edges")
    counts.expect(answer.status_code in (201, 422), f"{asked}: answered {answer.status_code}")
    if answer.status_code == 201:
        for path in ("/v1/runs/edge", "/v1/runs/edge/report"):
            status = asgi.get(path).status_code
            counts.expect(status == 200, f"{asked}: {path} answered {status}")
        asgi.request("DELETE", "/v1/runs/edge")


# --- bodies --------------------------------------------------------------------------------------


def _bodies(asgi: Asgi, counts: Counts, draw: random.Random) -> None:
    number = draw.randrange(1000, 90_000)
    lists = b'{"notify": [' + b",".join([b"[]"] * (number * 3)) + b"]}"
    for content in (_unknown_keys(number), lists, b'{"a":' * min(number, 30_000)):
        _ask_many(asgi, counts, content)


def _unknown_keys(number: int) -> bytes:
    return json.dumps({f"k{n}": 1 for n in range(number)}).encode()[:1_000_000]


def _ask_many(asgi: Asgi, counts: Counts, content: bytes) -> None:
    asgi.post("/v1/runs", {})  # memory loaded once is not the body's
    tracemalloc.start()
    answer = asgi.post("/v1/runs", content=content, headers={"content-type": "application/json"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counts.add("bodies of many keys")
    counts.expect(answer.status_code in (413, 422), f"a body of many: {answer.status_code}")
    counts.expect(peak < MANY_BYTES, f"a body of {len(content):,} bytes took {peak:,}")


# --- sockets -------------------------------------------------------------------------------------


def _sockets(asgi: Asgi, counts: Counts) -> None:
    """Clients that never read take all connections; new clients must still be served."""
    asgi.get("/openapi.json")  # the requested answer is written once
    with (
        patch.object(connections, "MAX_CONNECTIONS", PLACES),
        serving(asgi, http=Connection) as served,
        ExitStack() as stack,
    ):
        for _ in range(PLACES):
            stack.enter_context(_unread(served.port))
        open_now = served.server.server_state.connections
        until(lambda: sum(has_unread_answers(c) for c in list(open_now)) >= PLACES, 30)
        for _ in range(3):
            _newcomer(served.port, counts)
    counts.add("sockets that never read", PLACES)


def has_unread_answers(connection: object) -> bool:
    """True if unread answers have filled the connection's buffers."""
    return isinstance(connection, Connection) and connection.flow.write_paused


def _unread(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.send(PIPELINED)
    return sock


def _newcomer(port: int, counts: Counts) -> None:
    began = time.monotonic()
    try:
        url = f"http://127.0.0.1:{port}/healthz"
        status = httpx.get(url, timeout=3 * ANSWER_SECONDS, trust_env=False).status_code
    except httpx.HTTPError as error:
        counts.fail(f"a newcomer was shut out: {error!r}")
        return
    counts.add("newcomers served")
    counts.longest("until a newcomer was served", time.monotonic() - began)
    counts.expect(status == 200, f"a newcomer: {status}")


# --- pickles -------------------------------------------------------------------------------------


def _pickles(place: Path, counts: Counts, draw: random.Random) -> None:
    import torch

    torch.save({"x": torch.arange(50.0), "y": [1, "z", None]}, place / "good.pt")
    with zipfile.ZipFile(place / "good.pt") as good:
        index = next(n for n in good.namelist() if n.endswith("data.pkl"))
        content = good.read(index)
    for _ in range(20):
        broken = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        _load_pickle(place, counts, bytes(broken))
    _load_pickle(place, counts, _bytearray(draw.randrange(1 << 20, 1 << 31)))


def _bytearray(size: int) -> bytes:
    return b"\x80\x02c__builtin__\nbytearray\nJ" + size.to_bytes(4, "little") + b"\x85R."


def _load_pickle(place: Path, counts: Counts, content: bytes) -> None:
    """Load a file with this pickle and valid data: it must be refused or read, in little memory."""
    from trainer.interop import torchfile
    from trainer.interop.errors import InteropError

    path = place / "one.pt"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/byteorder", b"little")
        made.writestr("archive/data/0", bytes(200))
        made.writestr("archive/version", b"3\n")
    tracemalloc.start()
    try:
        torchfile.load(path, place, 1 << 30)
    except InteropError:
        counts.add("pickles refused")
    except Exception as error:  # anything else would be a crash of the import
        counts.fail(f"a pickle raised {error!r}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counts.add("pickles tried")
    counts.expect(peak < PICKLE_BYTES, f"a pickle of {len(content)} bytes took {peak:,}")
