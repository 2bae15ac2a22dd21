"""Ports, homes, proxies, odd paths, full outputs around the daemon: a sentence, or it works."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from server.database import db as databases
from server.settings import Settings
from tests.server.live_server import until

ODD = ["a%2Fb", "a?b=c", "a#b", "a b", "100%", "ä'\"b", "a&b;c", "~x", "[1]", "{x}"]


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRAIND_", "HTTP", "ALL_"))}
    return {**kept, **extra}


def traind(
    *arguments: str, stdout: int = subprocess.PIPE, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli.app", *arguments],
        env=clean_environment(**(environment or {})), stdout=stdout, stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )  # fmt: skip


@contextmanager
def daemon(
    directory: Path, port: int, *, stdout: int = subprocess.DEVNULL, **environment: str
) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "server.cli.app", "serve", "--data-dir", str(directory)]
    running = subprocess.Popen(
        [*command, "--port", str(port)],
        env=clean_environment(**environment), stdout=stdout, stderr=stdout,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("name", ODD)
def test_any_name_of_the_data_directory_is_its_own_database(name: str, tmp_path: Path) -> None:
    """Two directories whose names differ behind a `?` once were one database."""
    for number, root in enumerate((tmp_path / name, tmp_path / f"{name}2")):
        opened = databases.Database.open(Settings(data_dir=root))
        with opened.write() as session:
            session.execute(
                text("INSERT INTO meta (key, value) VALUES ('mine', :n)"), {"n": str(number)}
            )
        opened.close()
        assert (root / "traind.db").stat().st_size > 0
    for number, root in enumerate((tmp_path / name, tmp_path / f"{name}2")):
        opened = databases.Database.open(Settings(data_dir=root))
        with opened.read() as session:
            found = session.scalar(text("SELECT value FROM meta WHERE key = 'mine'"))
        opened.close()
        assert found == str(number)
    assert {p.name for p in tmp_path.iterdir()} == {name, f"{name}2"}


def test_the_loser_of_a_port_says_so_in_a_sentence(tmp_path: Path) -> None:
    port = free_port()
    with daemon(tmp_path / "a", port):
        until(lambda: is_ready(port), seconds=60)
        second = traind("serve", "--data-dir", str(tmp_path / "b"), "--port", str(port))
    assert second.returncode == 1
    assert "Traceback" not in second.stderr
    assert f"port {port} cannot be used: Address already in use" in second.stderr


@pytest.mark.parametrize(
    "name", ["traind.db", "daemon.json", "daemon.lock", "data-directory.json", "notices.json"]
)
def test_a_directory_in_the_place_of_a_file_is_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    ended = traind("serve", "--data-dir", str(tmp_path), "--port", str(free_port()))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert str(tmp_path / name) in ended.stderr


@pytest.mark.parametrize("point", ["durable.fsync=error(28)", "db.commit=error(28)"])
def test_a_disk_that_is_full_at_the_start_is_a_sentence(point: str, tmp_path: Path) -> None:
    ended = traind(
        "serve", "--data-dir", str(tmp_path), "--port", str(free_port()),
        environment={"TRAIND_FAIL": point},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("traind: The daemon cannot start: ")
    assert "No space left on device" in last or "is full" in last


def test_two_daemons_that_start_at_once_have_one_loser(tmp_path: Path) -> None:
    """Both may bind; who listens first has the port, and the other knows before it is ready."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        other.listen()
        loser = traind("serve", "--data-dir", str(tmp_path / "b"), "--port", str(port))
    assert loser.returncode == 1
    assert "Traceback" not in loser.stderr
    assert "cannot be used" in loser.stderr


def test_no_home_is_a_sentence() -> None:
    code = (
        "import pwd, os, sys\n"
        "def gone(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = gone\n"
        "from server.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    environment = clean_environment()
    for name in ("HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    for arguments in (["serve", "--port", "0"], ["token", "show-path"]):
        answer = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert answer.returncode == 1, answer.stderr
        assert "Traceback" not in answer.stderr
        assert "home directory" in answer.stderr
        assert "TRAIND_DATA_DIR" in answer.stderr


def test_a_home_of_nobody_in_a_setting_is_a_sentence() -> None:
    answer = traind("serve", "--data-dir", "~nosuchuser/data", "--port", "0")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "nosuchuser" in answer.stderr


@pytest.mark.parametrize(
    "broken",
    [
        {"HTTP_PROXY": "nonsense://x:y"},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        {"https_proxy": "http://[::1"},
        {"SSL_CERT_FILE": "/no/such/file.pem"},
        {"SSL_CERT_DIR": "/no/such/folder"},
        {"REQUESTS_CA_BUNDLE": "/no/such/file.pem"},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_broken_proxy_or_certificate_path_is_a_sentence_or_works(broken: dict[str, str]) -> None:
    near = traind("--url", f"http://127.0.0.1:{free_port()}", "ps", environment=broken)
    far = traind(
        "--url", "https://192.0.2.1:1", "ps", environment={**broken, "HTTPS_PROXY": "x://y"}
    )
    for answer in (near, far):
        assert answer.returncode == 3, answer.stderr
        assert "Traceback" not in answer.stderr
        assert "no daemon answers at" in answer.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_output_is_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        for arguments in (["presets", "--json"], ["--version"], ["token", "show-path"]):
            answer = traind(*arguments, stdout=full.fileno())
            if "No such command" in answer.stderr:
                continue
            assert answer.returncode == 1, (arguments, answer.stderr)
            assert "Traceback" not in answer.stderr
            assert "the output cannot be written: No space left" in answer.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_daemon_serves_with_full_outputs_and_broken_surroundings(tmp_path: Path) -> None:
    port = free_port()
    broken = {"HTTP_PROXY": "nonsense://x", "SSL_CERT_FILE": "/no/such/file"}
    with (
        open("/dev/full", "w") as full,
        daemon(tmp_path / "a%2F?b#c", port, stdout=full.fileno(), **broken) as running,
    ):
        until(lambda: is_ready(port), seconds=60)
        made = httpx.post(
            f"http://127.0.0.1:{port}/v1/runs", json={"name": "x", "start": False}, trust_env=False
        )
        assert made.status_code == 201
        assert running.poll() is None
    assert (tmp_path / "a%2F?b#c" / "traind.db").exists()
