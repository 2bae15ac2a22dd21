"""Access control: hosts, origins, sites and tokens, checked on the raw request.

A daemon on loopback is reachable from every web page its user visits. So the Host must be one of
ours (against DNS rebinding), and no request may come from another site (against forged requests).
On any other address, or with `auth = always`, a token is needed as well. A proxy in front makes
callers from anywhere look like loopback: what it forwards is refused where no token is asked for.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Forbidden, TraindError, Unauthorized
from server.guard.problems import problem
from server.guard.tokens import AccessTokens, read_or_make
from server.settings import LOOPBACK, Settings
from trainer.contract.text import printable

COOKIE = "traind_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Reachable without a token: what a browser needs to show the login, and the health checks.
OPEN_PATHS = frozenset({b"/", b"/healthz", b"/readyz", b"/favicon.ico", b"/docs"})
OPEN_PREFIX = b"/static/"
# A reverse proxy adds one of these; a client on the machine itself, and ssh -L, send none.
FORWARDED = (
    b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
    b"x-forwarded-server", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip",
)  # fmt: skip
BEHIND_A_PROXY = (
    "behind a reverse proxy start traind with --auth always --allow-host NAME: without a token "
    "anyone who reaches the proxy has full access"
)
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
log = logging.getLogger("traind")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::(\d{1,5}))?\Z")


class BindRefused(Exception):
    """The daemon must not listen there as it is configured; the message names what is missing."""


@dataclass(frozen=True)
class Policy:
    """hosts: names a request may be addressed to. tokens: None where none is needed.

    any_address: a bare IP address is a legal Host as well. Only a name can be rebound, so this is
    safe; it is off on loopback, where the allowlist is exact.
    """

    hosts: frozenset[str]
    any_address: bool = False
    tokens: AccessTokens | None = None

    def allows_host(self, name: str) -> bool:
        return name in self.hosts or (self.any_address and _is_address(name))


def policy_for(settings: Settings) -> Policy:
    """The policy these settings ask for; makes the token file when one is needed.

    Raises BindRefused for an address beyond loopback without `allow_remote`, TokenUnusable.
    """
    if not settings.is_loopback and not settings.allow_remote:
        raise BindRefused(
            f"{settings.host} can be reached from other machines: add --allow-remote if this is "
            "intended (a token is then required), or use 127.0.0.1 with ssh -L"
        )
    hosts = {*LOOPBACK, *(name.strip("[]").lower() for name in settings.allow_hosts)}
    if settings.is_loopback and settings.auth == "auto":
        return Policy(frozenset(hosts))
    path = settings.token_file or settings.paths.root / "token"
    token = read_or_make(path, ours=settings.token_file is None)
    tokens = AccessTokens(token, settings.paths.root / "sessions.json")
    if settings.is_loopback:
        return Policy(frozenset(hosts), tokens=tokens)
    hosts |= {settings.host.lower(), socket.gethostname().lower()}
    return Policy(frozenset(hosts), any_address=True, tokens=tokens)


class Access:
    """The ASGI layer of access control; it also adds the security headers to every response."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSockets here: the server answers 403 by itself
        guarded = _with_security_headers(send)
        try:
            check(self.policy, scope)
        except TraindError as error:
            await problem(error)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def check(policy: Policy, scope: Scope) -> None:
    """Raises Forbidden or Unauthorized. Reads nothing but the raw scope."""
    host = _single(scope, b"host")
    _check_host(policy, host)
    _check_site(host, scope)
    if _is_open(scope):
        return
    if policy.tokens is not None:
        _check_token(policy.tokens, scope)
    else:
        _check_not_forwarded(scope)


def _check_not_forwarded(scope: Scope) -> None:
    """Without tokens the address is the only guard, and a proxy hides it."""
    found = next((name for name, _ in scope["headers"] if name.lower() in FORWARDED), None)
    if found is None:
        return
    log.warning("refused a request that came through a proxy: %s", BEHIND_A_PROXY)
    raise Forbidden(
        f"This request was forwarded by a proxy ({found.decode('latin-1')}), and this daemon "
        "requires no token.",
        hint=f"{BEHIND_A_PROXY[0].upper()}{BEHIND_A_PROXY[1:]}.",
    )


def _check_host(policy: Policy, host: str | None) -> None:
    name = _host_name(host or "")
    if name is None or not policy.allows_host(name):
        raise Forbidden(
            f"This daemon does not accept the host {printable(host or 'of no name')}.",
            hint=_host_hint(policy),
        )


def _host_hint(policy: Policy) -> str:
    if policy.tokens is not None:
        return "Use 127.0.0.1 or localhost, or start traind with --allow-host NAME."
    return f"Use 127.0.0.1 or localhost; {BEHIND_A_PROXY}."


def _check_site(host: str | None, scope: Scope) -> None:
    is_safe = scope["method"] in SAFE_METHODS
    if _single(scope, b"sec-fetch-site") == "cross-site" and not (is_safe and _is_visit(scope)):
        what = "ask" if is_safe else "change"
        raise Forbidden(
            f"A page of another site cannot {what} anything here.",
            hint="Follow a link to it, or open the dashboard at its own address.",
        )
    if is_safe:
        return
    origin = _single(scope, b"origin")
    if origin is None:
        return
    scheme, _, authority = origin.partition("://")
    if scheme not in ("http", "https") or authority.lower() != (host or "").lower():
        raise Forbidden(
            f"A page from {printable(origin)} cannot change anything here.",
            hint="Open the dashboard under the same host and port as the API.",
        )


def _is_visit(scope: Scope) -> bool:
    """True if a person follows a link to a page here: a navigation of the whole tab, and by a
    click unless it leads to the dashboard. Not an image, a frame, a fetch or a prefetch."""
    wanted = (_single(scope, b"sec-fetch-mode"), _single(scope, b"sec-fetch-dest"))
    if wanted != ("navigate", "document") or _single(scope, b"sec-purpose") is not None:
        return False
    return scope["path"] == "/" or _single(scope, b"sec-fetch-user") == "?1"


def _check_token(tokens: AccessTokens, scope: Scope) -> None:
    given = _single(scope, b"authorization")
    if given is not None:
        kind, _, secret = given.partition(" ")
        if kind.lower() == "bearer" and tokens.is_token(secret.strip().encode("latin-1")):
            return
    else:
        session = session_of(scope)
        if session is not None and tokens.is_session(session):
            return
    raise Unauthorized(
        "This daemon requires a token." if given is None else "The token is wrong.",
        hint='curl -H "Authorization: Bearer $(cat DATA_DIR/token)" …; browsers log in at /.',
        headers={"WWW-Authenticate": 'Bearer realm="traind"'},
    )


def session_of(scope: Scope) -> bytes | None:
    """The secret in the session cookie, None without one."""
    for name, value in scope["headers"]:
        if name.lower() == b"cookie":
            for part in value.split(b";"):
                key, _, secret = part.strip().partition(b"=")
                if key == COOKIE.encode() and 0 < len(secret) <= 128:
                    return secret
    return None


def _is_open(scope: Scope) -> bool:
    path = scope.get("raw_path") or scope["path"].encode()
    path = path.partition(b"?")[0]
    if path in OPEN_PATHS:
        return True
    return path.startswith(OPEN_PREFIX) and b"%" not in path and b".." not in path


def _single(scope: Scope, wanted: bytes) -> str | None:
    """The one value of a header; None without it. Two values are a trick: Forbidden."""
    found = [value for name, value in scope["headers"] if name.lower() == wanted]
    if len(found) > 1:
        raise Forbidden(f"The header {wanted.decode()} occurs twice.")
    return found[0].decode("latin-1").strip() if found else None


def _host_name(host: str) -> str | None:
    match = _HOST.match(host)
    if match is None or int(match[2] or 0) > 65_535:
        return None
    return match[1].strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_security_headers(send: Send) -> Send:
    async def guarded(message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", [])}
            added = [pair for pair in SECURITY_HEADERS if pair[0] not in present]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return guarded
