"""Webhook receivers: how a URL of `notify` is validated, masked and called.

A web address receives the notice as signed JSON. With the extra `notify`, an address of the
apprise library (mail, chat, phone) receives its message. Addresses may contain credentials: they
are shown and logged only through `masked`.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
from collections.abc import MutableMapping, Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult, urlsplit

WEB = ("http://", "https://")
ANSWER_SECONDS = 10.0
MASK = "***"
ONLY_WEB = (
    "only http and https addresses are accepted; pip install 'traind[notify]' adds those that "
    "the apprise library supports"
)
UNKNOWN = "apprise does not recognise this address; its documentation lists the services"
_MASKED = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/\s]*/)?\*\*\*\d*\Z")
_NO_PROXY = ("127.0.0.0/8", "127.0.0.1", "localhost", "::1")

log = logging.getLogger("traind.notices")


def why_not(url: str) -> str | None:
    """Why the address is invalid as a receiver; None if it is valid."""
    if is_masked(url):
        return "this address is masked, as in API responses: give the full address with its secret"
    if url.startswith(WEB):
        return None if _split(url).hostname else "the address has no host"
    if find_spec("apprise") is None:
        return ONLY_WEB
    return None if _of_apprise(url) is not None else UNKNOWN


def deliver(url: str, body: bytes, headers: dict[str, str]) -> str | None:
    """Send a notice. Returns None on success, else the error without secrets. Never raises.

    headers: for a web address.
    """
    try:
        return _post(url, body, headers) if url.startswith(WEB) else _by_apprise(url, body)
    except Exception as error:  # also if no client can be created (a proxy's scheme, a certificate
        return _error_text(error, url)  # file): the notice is retried


def _post(url: str, body: bytes, headers: dict[str, str]) -> str | None:
    """POST a notice; None on a 2xx status. A redirect is an error: the body is for this receiver
    only."""
    import httpx

    # an explicit transport bypasses the environment's proxy, which must not be used for loopback;
    # without TLS a missing certificate file does not matter
    is_near = is_loopback(_split(url).hostname or "")
    transport = httpx.HTTPTransport(verify=url.startswith("https:")) if is_near else None
    with (
        httpx.Client(transport=transport, timeout=ANSWER_SECONDS) as client,
        client.stream("POST", url, content=body, headers=headers) as answer,
    ):
        return None if answer.is_success else f"it answered {answer.status_code}"


def _by_apprise(url: str, body: bytes) -> str | None:
    notice = json.loads(body)
    run = notice["run"]
    title = f"{run['name']}: {notice['what']}"
    words = f"{notice['message']} (step {notice['step']:,} of {run['end_step']:,})"
    service = _of_apprise(url) if find_spec("apprise") else None
    if service is None:
        return "apprise no longer recognises the address"
    taken = bool(service.notify(title=title, body=words))
    return None if taken else f"{service.service_name} did not accept it"


def _of_apprise(url: str) -> Any:
    """The apprise service of an address; None if apprise does not recognise it."""
    return _apprise().Apprise.instantiate(url, suppress_exceptions=True)


@cache
def _apprise() -> ModuleType:
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # this module reports the errors
    spare_loopback(os.environ)
    return apprise


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Bypass the environment's proxy for loopback, in libraries too."""
    named = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    merged = ",".join([*hosts, *(host for host in _NO_PROXY if host not in hosts)])
    environment["no_proxy"] = environment["NO_PROXY"] = merged


def is_loopback(host: str) -> bool:
    """True if the name or address belongs to this machine's loopback."""
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# --- secrets in addresses ------------------------------------------------------------------------


def masked(url: str) -> str:
    """Mask the parts of an address that may be credentials: https://host/***, tgram://***.

    Masks user, password, path and query of a web address; of any other address everything after
    the scheme, as the host may be a token.
    """
    if is_masked(url):
        return url
    parts = _split(url)
    if not url.startswith(WEB) or not parts.hostname:
        return f"{parts.scheme}://{MASK}"
    host = parts.netloc.rpartition("@")[2]
    is_bare = host == parts.netloc and parts.path in ("", "/")
    if is_bare and not parts.query and not parts.fragment:
        return url
    return f"{parts.scheme}://{host}/{MASK}"


def all_masked(urls: Sequence[str]) -> list[str]:
    """Mask each address; identical results are numbered, so that each is unique."""
    seen: dict[str, int] = {}
    shown = []
    for url in urls:
        mask = masked(url)
        seen[mask] = seen.get(mask, 0) + 1
        is_repeat = mask != url and seen[mask] > 1
        shown.append(f"{mask}{seen[mask]}" if is_repeat else mask)
    return shown


def unmasked(urls: Sequence[str], known: Sequence[str]) -> list[str]:
    """Replace the addresses that are in `all_masked(known)` by their originals."""
    whole = dict(zip(all_masked(known), known, strict=True))
    return [whole.get(url, url) for url in urls]


def is_masked(url: str) -> bool:
    return _MASKED.match(url) is not None


def _split(url: str) -> SplitResult:
    """Split an address; without a host if it cannot be parsed."""
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port
        return parts
    except ValueError:
        return SplitResult(url.partition(":")[0], "", "", "", "")


def _error_text(error: Exception, url: str) -> str:
    """Text of an error; only its type if the message contains a secret part of the address."""
    message, parts = " ".join(str(error).split())[:300], _split(url)
    secrets = (url, parts.username, parts.password, parts.path.strip("/"), parts.query)
    if not message or any(secret and secret in message for secret in secrets):
        return type(error).__name__
    return f"{type(error).__name__}: {message}"
