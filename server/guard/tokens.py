"""Access token of a data directory, and browser sessions.

The token is made at first start, mode 0600, and is never printed, logged or put into argv. A
browser trades it for a session cookie: random, revocable, expiring, and kept here only as a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
import time
from pathlib import Path

from server import token_proof
from trainer.contract.durable import write_durably

MIN_TOKEN_CHARS = 16
SESSION_SECONDS = 30 * 86_400
MAX_SESSIONS = 64


class TokenUnusable(Exception):
    """The token file is not safe to use; the message gives the remedy."""


def read_or_make(path: Path, *, ours: bool) -> str:
    """The token in `path`. ours: the file in the data directory, made when it is not there.

    A file given by the user (a container's secret) may have any mode; our own must be private.
    Raises TokenUnusable.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW if ours else os.O_RDONLY)
    except FileNotFoundError:
        if not ours:
            raise TokenUnusable(f"the token file {path} does not exist") from None
        return _make(path)
    except OSError as error:
        raise TokenUnusable(f"the token file {path} cannot be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if ours and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise TokenUnusable(f"others may read the token file: chmod 600 {path}")
        content = file.read(4096)
    token = content.decode("ascii", "replace").strip()
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable():
        raise TokenUnusable(
            f"the token file {path} must hold at least {MIN_TOKEN_CHARS} printable characters"
        )
    return token


def _make(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, token.encode() + b"\n")
    return token


class AccessTokens:
    """Authentication by the token or by a session created with it. Thread-safe."""

    def __init__(self, token: str, sessions_file: Path) -> None:
        self._token = token.encode()
        self._file = sessions_file
        self._lock = threading.Lock()
        self._sessions = self._load()

    def is_token(self, given: bytes) -> bool:
        """The token itself, or the bearer of a client that proved to know it."""
        if hmac.compare_digest(given, self._token):
            return True
        return token_proof.is_bearer(self._token.decode(), given)

    def prove(self, challenge: str) -> str | None:
        """That this daemon knows the token; None for what is no challenge."""
        return token_proof.of_daemon(self._token.decode(), challenge)

    def is_session(self, given: bytes) -> bool:
        """The lookup is by hash, so its time reveals nothing about a session's secret."""
        expires = self._sessions.get(_hash(given))
        return expires is not None and expires > time.time()

    def open_session(self) -> str:
        """A new session's secret for the cookie. The oldest go when there are too many."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            now = time.time()
            kept = {h: end for h, end in self._sessions.items() if end > now}
            kept[_hash(secret.encode())] = now + SESSION_SECONDS
            self._store(dict(list(kept.items())[-MAX_SESSIONS:]))
        return secret

    def close_session(self, given: bytes) -> None:
        with self._lock:
            kept = dict(self._sessions)
            if kept.pop(_hash(given), None) is not None:
                self._store(kept)

    def _store(self, sessions: dict[str, float]) -> None:
        """A new dict each time: readers need no lock. A new token ends every session."""
        self._sessions = sessions
        document = {"token_sha256": _hash(self._token), "sessions": sessions}
        write_durably(self._file, json.dumps(document).encode())

    def _load(self) -> dict[str, float]:
        try:
            document = json.loads(self._file.read_bytes())
            if document["token_sha256"] != _hash(self._token):
                return {}
            return {str(h): float(end) for h, end in document["sessions"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _hash(secret: bytes) -> str:
    return hashlib.sha256(b"traind session\0" + secret).hexdigest()
