"""Who can be told something, and telling them: web addresses, and whatever apprise knows.

A web address gets the whole notice as JSON, signed. With the extra `notify` an address of the
apprise library (mail, chats, phones) gets its sentence.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

WEB = ("http://", "https://")
ANSWER_SECONDS = 10.0
ONLY_WEB = (
    "only http and https addresses can be told; with pip install 'traind[notify]' also those that "
    "the apprise library knows"
)
UNKNOWN = "apprise knows no such address; its documentation lists the services"

log = logging.getLogger("traind.notices")


def why_not(url: str) -> str | None:
    """Why nothing can be delivered there, as far as the address tells; None when it can."""
    if url.startswith(WEB):
        return None
    if find_spec("apprise") is None:
        return ONLY_WEB
    return None if _of_apprise(url) is not None else UNKNOWN


def tell(url: str, body: bytes, headers: dict[str, str]) -> bool:
    """Whether the receiver took it. headers: for a web address."""
    return _post(url, body, headers) if url.startswith(WEB) else _tell_in_words(url, body)


def _post(url: str, body: bytes, headers: dict[str, str]) -> bool:
    """Whether it was answered with 2xx. A redirect is none: the body was for this receiver."""
    import httpx

    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        log.warning("a notice was not delivered: %s", type(error).__name__)
        return False
    if not answer.is_success:
        log.warning("a notice was answered with %d", answer.status_code)
    return answer.is_success


def _tell_in_words(url: str, body: bytes) -> bool:
    told = json.loads(body)
    run = told["run"]
    title = f"{run['name']}: {told['what']}"
    words = f"{told['message']} (step {told['step']:,} of {run['end_step']:,})"
    service = _of_apprise(url) if find_spec("apprise") else None
    if service is None:
        log.warning("a notice was not delivered: apprise does not know its address any more")
        return False
    taken = bool(service.notify(title=title, body=words))
    if not taken:
        log.warning("a notice was not taken by %s", service.service_name)
    return taken


def _of_apprise(url: str) -> Any:
    """What apprise makes of an address; None when it knows none such."""
    return _apprise().Apprise.instantiate(url, suppress_exceptions=True)


@cache
def _apprise() -> ModuleType:
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # we say what there is to say
    return apprise
