"""HTTP transport of the client: token, retries, errors.

ClientError
├── ApiError        the daemon refused the request; carries the RFC 9457 document
├── NotReachable    no connection to the URL
├── NotProven       the server requires a token and did not prove possession of it
└── BadAnswer       the response is not a traind daemon's
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from server import token_proof

DEFAULT_PORT = 8321
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
TRIES = 3
LONGEST_WAIT_SECONDS = 5.0

Query = Mapping[str, Any]
Body = Mapping[str, Any]


class ClientError(Exception):
    """Base class of the client's errors: connection, authentication, refusals."""


class ApiError(ClientError):
    """The daemon refused the request. `code` is the stable last part of the document's `type`."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(document.get("type", "error")).rsplit("/", 1)[-1].rsplit(":", 1)[-1]
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail") or self.title or f"HTTP {status}")
        self.hint: str | None = document.get("hint")
        self.state: str | None = document.get("state")
        self.legal: list[str] = list(document.get("legal") or [])
        self.errors: list[dict[str, str]] = list(document.get("errors") or [])
        super().__init__(self.detail)


class NotReachable(ClientError):
    """No connection to `url`: nothing listens there, or it stopped responding."""

    def __init__(self, url: str, cause: str) -> None:
        self.url, self.cause = url, cause
        super().__init__(f"no daemon answers at {url} ({cause})")


class NotProven(ClientError):
    """The server at `url` requires a token and did not prove possession of it."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the server at {url} did not prove possession of this token, so the token was not "
            "sent: it is a daemon with another token, an older one, or another program; check the "
            "URL and TRAIND_TOKEN_FILE"
        )


class BadAnswer(ClientError):
    """The response is not from a traind daemon of this version."""


class Proving(httpx.Auth):
    """Bearer authentication by mutual proof; the token itself is never sent.

    A new bearer is derived when the daemon rejects the old one. Requests carry no bearer until the
    daemon has proved possession of the token.
    """

    def __init__(self, token: str, health_url: str) -> None:
        self._token, self._health_url = token, health_url
        self._bearer: str | None = None
        self._asked = False
        self.is_proven = False

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        is_fresh = not self._asked
        if is_fresh:
            yield from self._prove(request)
        self._asked = False  # after a lost connection the server proves itself again
        response = yield self._with_bearer(request)
        self._asked = True
        if response.status_code == 401 and not is_fresh:  # expired, or another daemon
            yield from self._prove(request)
            yield self._with_bearer(request)

    def _prove(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        asked = token_proof.challenge()
        answer = yield httpx.Request(
            "GET",
            self._health_url,
            headers={token_proof.CHALLENGE_HEADER: asked},
            extensions={k: v for k, v in request.extensions.items() if k == "timeout"},
        )
        found = answer.headers.get(token_proof.PROOF_HEADER, "")
        self._bearer = token_proof.bearer(self._token, asked, found)
        self._asked, self.is_proven = True, self._bearer is not None

    def _with_bearer(self, request: httpx.Request) -> httpx.Request:
        request.headers.pop("Authorization", None)
        if self._bearer is not None:
            request.headers["Authorization"] = f"Bearer {self._bearer}"
        return request


class Wire:
    """HTTP connection to one daemon, with its URL and token.

    All tries of a POST carry the same Idempotency-Key, so a request whose response was lost is not
    executed twice.
    """

    def __init__(
        self,
        url: str | None,
        token_file: Path | None,
        timeout_seconds: float,
        transport: httpx.BaseTransport | None,
        door: str = "client",
    ) -> None:
        self.url = (url or default_url()).rstrip("/")
        host = _host(self.url)
        token = read_token(token_file, is_loopback=host in LOOPBACK)
        self.proving = Proving(token, f"{self.url}/healthz") if token else None
        try:
            self.http = httpx.Client(
                base_url=self.url,
                auth=self.proving,
                headers={"Traind-Client": door},
                timeout=httpx.Timeout(timeout_seconds, connect=5.0),
                transport=transport,
                trust_env=host not in LOOPBACK,  # no proxy for loopback
            )
        except Exception as error:  # an invalid proxy variable or certificate file
            raise NotReachable(self.url, str(error) or type(error).__name__) from error

    def get(self, path: str, shape: Any, query: Query | None = None) -> Any:
        return parse(self.request("GET", path, query=query), shape)

    def raw(self, path: str, accept: str, query: Query | None = None) -> httpx.Response:
        return self.request("GET", path, query=query, accept=accept)

    def post(
        self,
        path: str,
        shape: Any,
        body: Body | None = None,
        *,
        query: Query | None = None,
        key: str | None = None,
        changes: bool = True,
    ) -> Any:
        """changes: False for a request without side effects, which needs no idempotency key."""
        key = (key or str(uuid.uuid4())) if changes else None
        return parse(self.request("POST", path, body, query=query, key=key), shape)

    def patch(self, path: str, shape: Any, body: Body) -> Any:
        return parse(self.request("PATCH", path, body), shape)

    def put(self, path: str, shape: Any, body: Body) -> Any:
        return parse(self.request("PUT", path, body), shape)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)

    def request(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        query: Query | None = None,
        key: str | None = None,
        accept: str = "application/json",
    ) -> httpx.Response:
        """Send with retries; returns a 2xx response. Raises NotReachable, ApiError, BadAnswer."""
        headers = {"Accept": accept} | ({"Idempotency-Key": key} if key else {})
        params = {k: v for k, v in (query or {}).items() if v is not None}
        for tries_left in reversed(range(TRIES)):
            try:
                response = self.http.request(
                    method, "/v1" + path, json=body, params=params, headers=headers
                )
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
                raise NotReachable(self.url, cause_of(error)) from error
            except httpx.TransportError as error:
                if not tries_left:
                    raise NotReachable(self.url, cause_of(error)) from error
                time.sleep(0.2)
                continue
            if response.status_code == 503 and tries_left:
                time.sleep(_retry_after(response))
                continue
            if not response.is_success:
                raise self.refusal(response)
            return response
        raise AssertionError("the last try returns or raises")

    def refusal(self, response: httpx.Response) -> ClientError:
        """The error for an unsuccessful response whose body has been read."""
        if response.status_code == 401 and self.proving is not None and not self.proving.is_proven:
            return NotProven(self.url)
        return refusal(response)


def default_url() -> str:
    port = os.environ.get("TRAIND_PORT") or DEFAULT_PORT
    return os.environ.get("TRAIND_URL") or f"http://127.0.0.1:{port}"


def read_token(token_file: Path | None, *, is_loopback: bool) -> str | None:
    """The token, or None. Raises ClientError if a named token file is unreadable."""
    named = token_file or os.environ.get("TRAIND_TOKEN_FILE")
    if named:
        try:
            return Path(named).expanduser().read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise ClientError(f"the token file {named} cannot be read: {error}") from error
    if not is_loopback:
        return None  # the local token is never sent to another machine
    try:
        return default_token_path().read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def default_token_path() -> Path:
    """Path of the token file of a daemon with the same TRAIND_DATA_DIR."""
    named = os.environ.get("TRAIND_DATA_DIR")
    if named:
        return Path(named).expanduser().absolute() / "token"
    import platformdirs

    return Path(platformdirs.user_data_dir("traind")) / "token"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError as error:
        raise NotReachable(url, str(error)) from error


def quoted(part: str) -> str:
    """Percent-encode a path segment; `.` and `..` too, which clients would resolve."""
    return part.replace(".", "%2E") if part in (".", "..") else quote(part, safe="")


def parse(response: httpx.Response, shape: Any) -> Any:
    return _validated(_json(response), shape)


def refusal(response: httpx.Response) -> ClientError:
    """The error for an unsuccessful response whose body has been read."""
    if response.is_redirect:
        return BadAnswer(f"{response.request.url} redirects: is it a traind daemon? Check the URL.")
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"HTTP {response.status_code} {response.reason_phrase}"}
    return ApiError(response.status_code, document)


def cause_of(error: Exception) -> str:
    return str(error) or type(error).__name__


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise BadAnswer(
            f"{response.request.url} returned {response.headers.get('content-type', 'no content')} "
            "instead of JSON: is it a traind daemon? Check the URL."
        ) from error


def _validated(body: Any, shape: Any) -> Any:
    try:
        if isinstance(shape, type) and issubclass(shape, BaseModel):
            return shape.model_validate(body)
        return TypeAdapter(shape).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadAnswer(
            f"unexpected response ({where}: {first['msg']}): "
            "check that client and daemon have the same version"
        ) from error


def _retry_after(response: httpx.Response) -> float:
    try:
        asked = float(response.headers.get("Retry-After", ""))
    except ValueError:
        asked = 0.5
    return min(max(asked, 0.05), LONGEST_WAIT_SECONDS)
