"""Mutual token proof (HMAC challenge-response) of client and daemon, without sending the token.

The client sends a random challenge to GET /healthz; the daemon returns the time and an HMAC over
both, keyed with the token. Another program that listens on the daemon's port cannot compute it, so
the client sends it no credential. The client's proof, an HMAC over the same two values, is its
bearer for ten minutes: intercepting it gives access for ten minutes, but not the token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from functools import lru_cache

CHALLENGE_HEADER, PROOF_HEADER = "Traind-Challenge", "Traind-Proof"
VALID_SECONDS = 600
CLOCK_SECONDS = 300  # tolerance for a clock that is set back
PREFIX = "traind1"
_ITERATIONS = 20_000  # 10 ms: makes guessing a hand-chosen token from its proofs slow
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{22,128}\Z")
_ISSUED = re.compile(r"\d{1,12}-[0-9a-f]{32}\Z")


def challenge() -> str:
    return secrets.token_urlsafe(32)


def of_daemon(token: str, asked: str) -> str | None:
    """The daemon's proof for a challenge; None for a malformed challenge."""
    if not _CHALLENGE.match(asked):
        return None
    issued = f"{int(time.time())}-{secrets.token_hex(16)}"
    return f"{issued}.{_mac(token, 'daemon', asked, issued)}"


def bearer(token: str, asked: str, answer: str) -> str | None:
    """The client's bearer, if the daemon's answer is a valid proof of the token; else None."""
    issued, _, proof = answer.partition(".")
    if not _ISSUED.match(issued):
        return None
    if not hmac.compare_digest(proof.encode(), _mac(token, "daemon", asked, issued).encode()):
        return None
    return f"{PREFIX}.{asked}.{issued}.{_mac(token, 'client', asked, issued)}"


def is_bearer(token: str, given: bytes) -> bool:
    """True if `given` is a bearer issued in the last ten minutes."""
    prefix, *parts = given.decode("latin-1").split(".")
    if prefix != PREFIX or len(parts) != 3:
        return False
    asked, issued, proof = parts
    if not _CHALLENGE.match(asked) or not _ISSUED.match(issued):
        return False
    wanted = _mac(token, "client", asked, issued)
    if not hmac.compare_digest(proof.encode("latin-1"), wanted.encode()):
        return False
    age = time.time() - int(issued.partition("-")[0])
    return -CLOCK_SECONDS <= age <= VALID_SECONDS


def _mac(token: str, who: str, asked: str, issued: str) -> str:
    message = "\0".join(("traind", who, asked, issued)).encode()
    return hmac.new(_key(token), message, hashlib.sha256).hexdigest()


@lru_cache(maxsize=4)
def _key(token: str) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", token.encode(), b"traind proof", _ITERATIONS)
