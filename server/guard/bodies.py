"""Request bodies: size, content type, time limits, and a strict JSON parser.

`Bodies` is the ASGI layer: it reads the body itself, counting, before anything behind it runs, so
that a chunked body without a length is bounded like any other (the setting `max_body_bytes`).
`parse` is the strict reader.
"""

from __future__ import annotations

import asyncio
import json
import math
import shlex
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Busy, Invalid, TooLarge, TraindError, UnsupportedMediaType
from server.guard.problems import problem
from trainer.contract import units
from trainer.contract.text import printable

MAX_DEPTH = 32
MAX_KEYS = 4_000  # of all objects together: each unknown one is a finding with a sentence
MAX_VALUES = 250_000  # a prompt of token ids is the longest list
MAX_OBJECTS = 20_000  # lists and objects on one level
MAX_INTEGER = 2**63
HALF_PAIR = "text holds half a surrogate pair (\\ud800 to \\udfff)"
READ_SECONDS = 30.0
ALL_BODIES_BYTES = 64_000_000  # held at once, over all requests


class RequestTimeout(TraindError):
    code, status, title = "request-timeout", 408, "The body did not arrive in time"


class Gone(Exception):
    """The client left while sending."""


class Bodies:
    """Reads and checks each body, then hands it on in one piece."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, read_seconds: float = READ_SECONDS) -> None:
        self.app, self.max_bytes, self.read_seconds = app, max_bytes, read_seconds
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        if not headers.keys() & {b"content-length", b"transfer-encoding"}:
            await self.app(scope, receive, send)
            return
        held = 0
        try:
            self._refuse_by_headers(headers)
            body = bytearray()
            async with asyncio.timeout(self.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    chunk = message.get("body", b"")
                    self._refuse_by_size(len(body) + len(chunk))
                    held, self.held = held + len(chunk), self.held + len(chunk)
                    body += chunk
                    if not message.get("more_body"):
                        break
            if body:
                refuse_type(scope, headers)
            await self.app(scope, _Replay(bytes(body), receive), send)
        except Gone:
            return
        except TimeoutError:
            waited = units.duration(self.read_seconds)
            error = RequestTimeout(f"The body was not complete after {waited}.")
            await _refuse(error, scope, receive, send)
        except TraindError as error:
            await _refuse(error, scope, receive, send)
        finally:
            self.held -= held

    def _refuse_by_headers(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20:
            self._refuse_by_size(int(length))
        elif length:
            raise TooLarge("The Content-Length is not a valid number.")

    def _refuse_by_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise TooLarge(f"A body may have at most {self.max_bytes:,} bytes.")
        if self.held + size > ALL_BODIES_BYTES:
            raise Busy("Too many bodies are arriving at once.", headers={"Retry-After": "1"})


def refuse_type(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Raises UnsupportedMediaType unless the body is plain, uncompressed JSON in UTF-8."""
    given = headers.get(b"content-type", b"").decode("latin-1")
    media, _, parameters = given.lower().partition(";")
    media, charset = media.strip(), parameters.partition("charset=")[2].strip().strip('"')
    if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        received = printable(headers[b"content-encoding"].decode("latin-1"))
        raise UnsupportedMediaType(
            f"The body must not be compressed (Content-Encoding: {received}).", hint=_curl(scope)
        )
    is_json = media == "application/json" or (
        media.startswith("application/") and media.endswith("+json")
    )
    if not is_json or charset not in ("", "utf-8", "utf8"):
        received = f"it is {printable(given)}" if given else "it has no Content-Type"
        raise UnsupportedMediaType(
            f"A body must be application/json in UTF-8; {received}.", hint=_curl(scope)
        )


def parse(raw: bytes) -> Any:
    """Strict JSON: no NaN, no doubled keys, whole numbers below 2^63, at most 32 levels.

    Raises Invalid, whose detail gives the place.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_Objects()
        )
    except UnicodeDecodeError as error:
        raise Invalid(f"The body is not UTF-8: byte {error.start} is invalid.") from None
    except RecursionError:
        raise Invalid(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise Invalid(f"Invalid JSON: {error.msg} at {place}.") from None
    except ValueError as error:
        raise Invalid(f"Invalid JSON: {printable(str(error), 200)}.") from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """Check depth, sizes of numbers and lone surrogates; iterative, so that depth is harmless."""
    if not isinstance(value, dict | list):
        _check_scalar(value, "")
        return
    open_items: list[tuple[Any, str, int]] = [(value, "", 1)]
    seen = 1
    while open_items:
        item, pointer, depth = open_items.pop()
        if depth > MAX_DEPTH:
            raise Invalid(f"The body is nested deeper than {MAX_DEPTH} levels.")
        seen += len(item)
        if seen > MAX_VALUES:
            raise Invalid(f"The body holds more than {MAX_VALUES:,} values.")
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, below in pairs:
            if isinstance(key, str):
                _check_text(key, pointer)
            if isinstance(below, dict | list):
                open_items.append((below, f"{pointer}/{printable(str(key))}", depth + 1))
                if len(open_items) > MAX_OBJECTS:
                    raise Invalid(f"The body holds more than {MAX_OBJECTS:,} lists and objects.")
            else:
                _check_scalar(below, pointer, key)


def _check_scalar(item: Any, pointer: str, key: str | int | None = None) -> None:
    """key: its key or index in the object or list at `pointer`."""
    if isinstance(item, str):
        if item.isascii():
            return
        why = None if _is_whole(item) else HALF_PAIR
    elif isinstance(item, float) and not math.isfinite(item):
        why = "this number is too large for a float"
    elif isinstance(item, int) and not -MAX_INTEGER <= item < MAX_INTEGER:
        why = "a whole number must be between -2^63 and 2^63 - 1"
    else:
        return
    if why:
        raise _wrong(pointer if key is None else f"{pointer}/{printable(str(key))}", why)


def _check_text(text: str, pointer: str) -> None:
    if not text.isascii() and not _is_whole(text):
        raise _wrong(pointer, HALF_PAIR)


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _wrong(pointer: str, detail: str) -> Invalid:
    place = pointer[1:].replace("/", ".") or "the body"
    return Invalid(f"{place}: {detail}.", errors=[{"pointer": pointer, "detail": detail}])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Objects:
    """Makes the objects of one body: no key twice, and not too many keys together."""

    def __init__(self) -> None:
        self.keys = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.keys += len(pairs)
        if self.keys > MAX_KEYS:
            raise ValueError(f"its objects have more than {MAX_KEYS:,} keys")
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"the key {twice!r} occurs twice")
        return made


class _Replay:
    """A receive with the body in one message, then the connection's own messages (a disconnect).

    Whoever looks for the connection behind a receive (leaving.py) finds it here too.
    """

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive, self.__self__ = receive, getattr(receive, "__self__", None)

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _refuse(error: TraindError, scope: Scope, receive: Receive, send: Send) -> None:
    error.headers.setdefault("Connection", "close")  # the rest of the body is not waited for
    await problem(error)(scope, receive, send)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


def _curl(scope: Scope) -> str:
    host = _headers(scope).get(b"host", b"127.0.0.1:8321").decode("latin-1")
    path = printable(scope.get("path", "/"), 200)
    url = shlex.quote(f"http://{printable(host)}{path}")
    data = '\'{"name": "demo"}\'' if path.endswith("/runs") else "'{}'"
    return f"curl -X {scope['method']} {url} -H 'Content-Type: application/json' --data {data}"
