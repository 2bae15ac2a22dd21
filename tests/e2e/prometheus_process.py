"""Real processes for the tests of Prometheus, on loopback and ended by their own pid."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.server.house import launcher
from tests.server.live_server import until

Ask = Callable[..., Any]


@contextmanager
def prometheus(directory: Path, configuration: Path) -> Iterator[Ask]:
    """A Prometheus on a free loopback port; yields `ask(endpoint, **parameters)`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = directory / "prometheus.log"
    command = [
        "prometheus", f"--config.file={configuration}", f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
    ]  # fmt: skip
    with log.open("wb") as file, httpx.Client(timeout=10, trust_env=False) as client:
        process = subprocess.Popen(command, stdout=file, stderr=file)

        def ask(endpoint: str, **parameters: str) -> Any:
            url = f"http://127.0.0.1:{port}/api/v1/{endpoint}"
            answer = client.get(url, params=parameters).json()
            assert answer["status"] == "success", (parameters, answer)
            return answer["data"]

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return client.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(ready, 60)
            yield ask
        finally:
            _end(process)


@contextmanager
def daemon(directory: Path, token: Path) -> Iterator[str]:
    """Its URL: `traind serve` that wants the token; its run `real` has a trainer without torch."""
    data = directory / "daemon"
    environment = os.environ | {
        "TRAIND_DATA_DIR": str(data),
        "TRAIND_PORT": "0",
        "TRAIND_AUTH": "always",
        "TRAIND_TOKEN_FILE": str(token),
        "TRAIND_TRAINER_PYTHON": launcher(directory),
        "TRAIND_TICK_SECONDS": "0.1",
        "TRAIND_STOP_TRAINERS": "true",
        "FAKE": json.dumps({"*": {"step_seconds": 0.2}}),
    }
    command = [sys.executable, "-P", "-m", "server.cli.app", "serve"]
    log = directory / "daemon.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        url = _listens(process, data, log)
        bearer = {"Authorization": f"Bearer {token.read_text().strip()}"}
        body = {"name": "real", "horizon": {"steps": 100_000}}
        made = httpx.post(f"{url}/v1/runs", json=body, headers=bearer, timeout=30, trust_env=False)
        assert made.status_code == 201, made.text
        yield url
    finally:
        _end(process)


def _listens(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    def told() -> bool:
        assert process.poll() is None, log.read_text()
        return (data / "daemon.json").exists()

    until(told, 60)
    url = str(json.loads((data / "daemon.json").read_text())["url"])

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    until(ready, 60)
    return url


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise
