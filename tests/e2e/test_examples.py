"""The example programs run as they stand against a real daemon."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.real_daemon import TINY, RealDaemon

ROOT = Path(__file__).parents[2]


def test_the_python_client_starts_follows_and_extends_a_run(tmp_path: Path) -> None:
    daemon = RealDaemon(tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "client.py")],
            env={**daemon.environment, "TRAIND_URL": daemon.url, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "completed 300/300" in done.stdout
        assert "# from-python" in done.stdout
    finally:
        daemon.end()


@pytest.mark.timeout(300)  # a daemon, and two agents of torchrun after it
def test_ranks_by_hand_train_on_two_nodes(tmp_path: Path) -> None:
    """Two agents of torchrun on loopback, with the commands that the example prints."""
    daemon = RealDaemon(tmp_path)
    try:
        batch = {"tokens": 512, "device_batch_size": 4}
        daemon.client.create_run({"name": "before", **TINY, "batch": batch})
        daemon.until("before", lambda now: now.step >= 1)
        daemon.client.cancel("before")
        daemon.until_state("before", "cancelled")
        run_dir = daemon.client.run("before").directory
    finally:
        daemon.end()
    by_hand = tmp_path / "by-hand"
    example = [sys.executable, str(ROOT / "examples" / "two_boxes.py"), run_dir, str(by_hand)]
    environment = {**daemon.environment, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    asked = subprocess.run(
        [*example, "cpu", "cpu"],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = asked.stdout.splitlines()
    nodes = [_on_loopback(line, port, environment, tmp_path) for line in commands]
    try:
        statuses = [node.wait(240) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    attempt = by_hand / "attempts" / "0001"
    log = "\n".join(path.read_text() for path in tmp_path.glob("node-*.log"))
    assert statuses == [0, 0], log
    assert json.loads((attempt / "exit.json").read_text())["outcome"] == "completed"
    assert (attempt / "ranks" / "0001.log").exists()


def _on_loopback(
    line: str, port: str, environment: dict[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    """A printed command, with loopback and a free port in place of this machine's name and port."""
    variable, *command = shlex.split(line)
    name, _, value = variable.partition("=")
    for option, changed in (("--master-addr", "127.0.0.1"), ("--master-port", port)):
        command[command.index(option) + 1] = changed
    node = command[command.index("--node-rank") + 1]
    with (folder / f"node-{node}.log").open("wb") as log:
        return subprocess.Popen(command, env={**environment, name: value}, stdout=log, stderr=log)
