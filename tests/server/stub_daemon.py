"""A tiny loopback HTTP server with scripted answers: what the client and CLI talk to in tests.

It stands for a daemon that misbehaves on purpose (drops connections, restarts, says 503), and for
one that answers in an instant.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """drop: close the connection without a word. stream: parts sent one by one, then the end."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    stream: list[bytes] | None = None


Answer = Reply | Callable[[Asked], Reply]


class Stub:
    """answers: by (method, path); worked off in order, the last one repeats."""

    def __init__(
        self, port: int = 0, answers: dict[tuple[str, str], list[Answer]] | None = None
    ) -> None:
        self.answers = answers or {}
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.01))
        self._thread.start()
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def on(self, method: str, path: str, first: Answer, *more: Answer) -> None:
        self.answers[method, path] = [first, *more]

    def requests(self, method: str, path: str) -> list[Asked]:
        return [a for a in self.asked if (a.method, a.path) == (method, path)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _reply(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            answers = self.answers.get((asked.method, asked.path), [])
            answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else None
        if answer is None:
            document = {"type": "urn:traind:not-found", "title": "Not found", "status": 404,
                        "detail": f"{asked.method} {asked.path} is not scripted"}  # fmt: skip
            return Reply(document, 404)
        return answer if isinstance(answer, Reply) else answer(asked)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                parts = urlsplit(self.path)
                asked = Asked(
                    self.command, parts.path, parse_qs(parts.query),
                    {k.lower(): v for k, v in self.headers.items()},
                    json.loads(raw) if raw else None,
                )  # fmt: skip
                self._send(stub._reply(asked))

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

            def _send(self, reply: Reply) -> None:
                self.close_connection = True
                if reply.drop:
                    return
                self.send_response(reply.status)
                headers = dict(reply.headers)
                if reply.stream is not None:
                    headers.setdefault("Content-Type", "text/event-stream; charset=utf-8")
                    self._headers(headers)
                    for part in reply.stream:
                        self.wfile.write(part)
                        self.wfile.flush()
                    return
                is_text = isinstance(reply.body, str | bytes)
                content = reply.body if is_text else json.dumps(reply.body)
                raw = content if isinstance(content, bytes) else str(content).encode()
                kind = PROBLEM if reply.status >= 400 else "application/json"
                headers.setdefault("Content-Type", "text/plain" if is_text else kind)
                self._headers(headers | {"Content-Length": str(len(raw))})
                self.wfile.write(raw)

            def _headers(self, headers: dict[str, str]) -> None:
                for name, value in (headers | {"Connection": "close"}).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def running(port: int = 0) -> Iterator[Stub]:
    stub = Stub(port)
    try:
        yield stub
    finally:
        stub.close()


def page(*items: Any) -> Reply:
    return Reply({"data": list(items), "has_more": False, "next": None})


def problem(status: int, code: str, detail: str, **extra: Any) -> Reply:
    document = {"type": f"urn:traind:error:{code}", "title": code, "status": status}
    return Reply({**document, "detail": detail, **extra}, status)


def event_frame(number: int, message: str, kind: str = "note", **fields: Any) -> bytes:
    data = event(number, message, kind, **fields)
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def event(number: int, message: str, kind: str = "note", **fields: Any) -> dict[str, Any]:
    return {
        "id": number, "run": "run_1", "job": None, "attempt": 1, "kind": kind, "level": "info",
        "step": None, "message": message, "data": {}, "unix_seconds": 1_750_000_000.0 + number,
        **fields,
    }  # fmt: skip


def summary(name: str = "demo", state: str = "running", **fields: Any) -> dict[str, Any]:
    return {
        "id": "run_1", "name": name, "title": None, "state": state, "desired_state": "running",
        "reason": "requested", "reason_message": "Training.", "device": "cpu", "step": 50,
        "end_step": 200, "fraction": 0.25, "loss": 3.5, "val_bpb": None,
        "tokens_per_second": 12_345.0, "eta_seconds": 90.0, "queue_position": None,
        "num_phases": 1, "created_at": 1.0, "started_at": 2.0, "ended_at": None,
        "last_step_at": 3.0, "metadata": {}, **fields,
    }  # fmt: skip


def detail(name: str = "demo", state: str = "running", **fields: Any) -> dict[str, Any]:
    from trainer.contract.plan import make_plan
    from trainer.contract.spec import resolve

    spec = resolve({"name": name if name.isidentifier() else "demo"})
    return summary(
        name, state, advice="", spec=spec.model_dump(mode="json"),
        plan=make_plan(spec).model_dump(mode="json"), frozen={}, overrides={}, fingerprint=None,
        tokens_seen=204_800, exact_resume=None, pending_extend=None, directory="/data/run_1",
        **fields,
    )  # fmt: skip


def progress(state: str = "running", step: int = 50, **fields: Any) -> dict[str, Any]:
    empty = (
        "stage_fraction", "momentum", "weight_decay", "grad_norm", "mfu", "mfu_causal",
        "peak_flops", "power_watts", "temperature_celsius", "energy_joules", "finish_at",
        "eta_parts", "eta_source", "last_checkpoint", "val_bpb", "core", "exact_resume",
    )  # fmt: skip
    return {
        **dict.fromkeys(empty), "id": "run_1", "name": "demo", "state": state,
        "desired_state": "running", "reason": "requested", "reason_message": "Training.",
        "advice": "", "phase": "main", "attempt": 1, "stage": "training", "stage_detail": "",
        "step": step, "end_step": 200, "fraction": step / 200, "tokens_seen": step * 4096,
        "loss": 3.5, "loss_smooth": 3.6, "lr_multiplier": 1.0, "tokens_per_second": 12_345.0,
        "step_seconds": 0.33, "vram_bytes": {}, "eta_seconds": 90.0, "last_step_at": 3.0,
        **fields,
    }  # fmt: skip


def job(state: str = "completed", kind: str = "sample", **fields: Any) -> dict[str, Any]:
    return {
        "id": "job_1", "kind": kind, "run": "run_1", "where": "cpu", "state": state,
        "reason": None, "message": "", "stage": "sampling", "stage_detail": "", "fraction": None,
        "params": {}, "result": None, "created_at": 1.0, "started_at": 2.0, "ended_at": 3.0,
        **fields,
    }  # fmt: skip
