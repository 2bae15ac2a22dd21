"""The daemon process: one per data directory; listening socket, logging, signals, shutdown.

Trainers continue to run after shutdown unless `stop_trainers` is set. A signal only sets a flag;
a second one exits immediately.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeGuard

from server import file_permissions
from server.errors import TraindError
from server.lock import CannotServe, held
from trainer.contract.text import clean

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from server.ingestion.worker import Worker
    from server.settings import Settings

LISTENING = "daemon.json"
_OWN_FILES = (
    "traind.db", "traind.db-wal", "traind.db-shm", LISTENING, "data-directory.json",
    "notices.json", "notify-secret", "token", "attention.json",
)  # fmt: skip
KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 5
MAX_HEADER_BYTES = 32_000
BACKLOG = 256

log = logging.getLogger("traind")

# --- serving -------------------------------------------------------------------------------------


def serve(settings: Settings) -> int:
    """Run the daemon until a signal stops it. Exit status: 0, or 1 with a message on stderr."""
    gc.disable()  # until startup is complete: collections took a tenth of the startup time
    _log_as(settings)
    file_permissions.begin()
    try:
        with held(settings), _listening(settings) as listener:
            _require_files(settings)
            return _serve_listener(listener, settings)
    except Exception as error:
        if _is_of_the_place(error, settings):
            error = CannotServe.from_error(error)
        if not _is_for_a_person(error):
            raise
        print(f"traind: {error}", file=sys.stderr)
        return 1
    finally:
        gc.enable()


def _require_files(settings: Settings) -> None:
    """Raises CannotServe if one of the daemon's files exists and is not a regular file."""
    for name in _OWN_FILES:
        path = settings.paths.root / name
        if path.exists() and not path.is_file():
            raise CannotServe(
                f"{path} is not a file; the daemon needs a file there. Rename or remove it, then "
                "start again."
            )


def _serve_listener(listener: socket.socket, settings: Settings) -> int:
    from server.ingestion.worker import Worker

    worker = Worker.fork()  # before imports that only the HTTP server needs, so they are not shared
    try:
        return _serve_with(worker, listener, settings)
    finally:
        worker.close()


def _serve_with(worker: Worker, listener: socket.socket, settings: Settings) -> int:
    from server.database.db import Database
    from server.main import create_app

    failures: list[BaseException] = []
    server: uvicorn.Server

    def give_up(error: BaseException) -> None:
        failures.append(error)
        if isinstance(error, CannotServe):  # reported below; uvicorn would log a traceback
            logging.getLogger("uvicorn.error").disabled = True
        server.should_exit = True

    db = Database.open(settings)
    worker.open(settings.paths.root)
    app = create_app(settings, db, worker=worker, on_failure=give_up)
    server = _uvicorn(app)
    # what is loaded by now stays: without the freeze every full collection traverses it, and one
    # response in a hundred takes 150 ms longer
    gc.collect()
    gc.freeze()
    gc.enable()
    _end_on_signals(server, app)
    # uvicorn raises SystemExit if the app could not start
    with _announced(listener, settings), suppress(SystemExit):
        server.run(sockets=[listener])
    if failures and isinstance(failures[0], CannotServe):
        raise failures[0]
    if failures:
        log.critical("the daemon stops: the supervisor failed (%s)", failures[0])
        return 1
    return 0 if server.started else 1


def _uvicorn(app: FastAPI) -> uvicorn.Server:
    import uvicorn

    from server.guard.connections import Connection, raise_file_limit

    class Server(uvicorn.Server):
        """uvicorn's server without its signal handlers: ours close the streams first."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config: dict[str, Any] = {
        "http": Connection,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "backlog": BACKLOG,
    }
    raise_file_limit()
    return Server(uvicorn.Config(app, **config))


def _end_on_signals(server: uvicorn.Server, app: FastAPI) -> None:
    """SIGTERM and SIGINT set a flag and close the streams; a second one exits immediately."""
    from server.api.app import end_streams

    signalled = False

    def end(signum: int, frame: object) -> None:
        nonlocal signalled
        if signalled:
            os._exit(128 + signum)
        signalled = server.should_exit = True
        end_streams(app)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket, bound first, so that an address in use is reported in a second."""
    from server.guard.access import policy_for

    policy_for(settings)  # rejects a forbidden address before it is bound
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is given; otherwise each short
    # response on a keep-alive connection waits 40 ms for the client's delayed acknowledgement
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            # here, not in uvicorn: two daemons can bind one port as long as neither listens
            listener.listen(BACKLOG)
        except OSError as error:
            raise CannotServe(
                f"{settings.host} port {settings.port} cannot be used: {error.strerror}. "
                "Choose another port with --port."
            ) from error
        yield listener


@contextmanager
def _announced(listener: socket.socket, settings: Settings) -> Iterator[None]:
    """Write `daemon.json`, with pid and URL of the running daemon; removed at shutdown."""
    from server.guard.access import BEHIND_A_PROXY
    from trainer.contract.durable import write_durably

    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    path = settings.paths.root / LISTENING
    write_durably(path, json.dumps({"pid": os.getpid(), "url": url}).encode())
    log.info("listening on %s", url)
    if settings.is_loopback and settings.auth == "auto":
        level = logging.WARNING if settings.allow_hosts else logging.INFO
        log.log(level, "requests need no token; %s", BEHIND_A_PROXY)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _is_of_the_place(error: Exception, settings: Settings) -> TypeGuard[OSError | TraindError]:
    """True for an error of the environment, such as a full or read-only disk."""
    if isinstance(error, OSError):
        is_inside = str(error.filename or "").startswith(str(settings.paths.root))
        return is_inside or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return isinstance(error, TraindError)


def _is_for_a_person(error: Exception) -> bool:
    if isinstance(error, CannotServe):
        return True  # before the slow imports: a second daemon must exit within a second
    from server.database.migrate import Refused
    from server.guard.access import BindRefused
    from server.guard.tokens import TokenUnusable

    return isinstance(error, (BindRefused, Refused, TokenUnusable))


# --- the log -------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """Log formatter: one JSON object per line, whatever the message contains."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """Log formatter: time, level, message, with control characters escaped. One line per record;
    exception text is indented, so that untrusted text never looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return clean(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {clean(line)}" for line in lines)


def _log_as(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = PlainLines("%(asctime)s %(levelname)-8s %(message)s", "%F %T")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else plain)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("traind", "server"):
        logging.getLogger(name).setLevel(settings.log_level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
