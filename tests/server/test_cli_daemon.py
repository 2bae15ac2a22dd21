"""The CLI against the real daemon: every answer parses, every reading command prints."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.cli.app import main
from server.client import ApiError, Client
from server.client.wire import TRIES


@dataclass
class Daemon:
    url: str
    process: subprocess.Popen[bytes]
    data_dir: Path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """`traind serve` on a free port; runs in it are created and never started."""
    root = tmp_path_factory.mktemp("daemon")
    with (root / "log").open("wb") as log:
        command = [sys.executable, "-m", "server.cli.app", "serve"]
        command += ["--data-dir", str(root / "data"), "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield Daemon(_ready(root, process), process, root / "data")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(root: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    told = root / "data" / "daemon.json"
    while time.monotonic() < deadline and process.poll() is None:
        if told.exists():
            url = json.loads(told.read_bytes())["url"]
            with Client(url) as traind:
                if traind.is_ready():
                    return url
        time.sleep(0.05)
    raise AssertionError((root / "log").read_text())


@pytest.fixture
def traind(daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRAIND_URL", daemon.url)
    monkeypatch.setenv("TRAIND_DATA_DIR", str(daemon.data_dir))
    monkeypatch.delenv("TRAIND_TOKEN_FILE", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, (arguments, said.out, said.err)
        return said.out if code == 0 else said.err

    return run


@pytest.fixture
def created(traind: Any) -> str:
    """A run of its own for the test, in state 'created'."""
    name = f"made-{time.monotonic_ns()}"
    traind("run", "--name", name, "--preset", "demo", "--no-start")
    return name


def test_a_run_is_made_shown_and_deleted(traind: Any, created: str):
    assert created in traind("ps")
    shown = json.loads(traind("show", created, "--json"))
    assert (shown["name"], shown["state"]) == (created, "created")
    assert f"{shown['plan']['parameters']['total']:,}" in traind("show", created)
    traind("delete", created, "--yes")
    assert "no run" in traind("show", created, code=1)


@pytest.mark.parametrize(
    "command",
    [
        ("phases",), ("attempts",), ("checkpoints",), ("events",), ("evaluations",), ("samples",),
        ("metrics",), ("report",), ("show",), ("jobs", "--run"),
    ],
)  # fmt: skip
def test_every_reading_command_prints_text_and_json(
    traind: Any, created: str, command: tuple[str, ...]
):
    traind(*command, created)
    json.loads(traind(*command, created, "--json"))


def test_metrics_and_report_in_their_other_forms(traind: Any, created: str, tmp_path: Path):
    assert traind("metrics", created, "--csv").startswith("key,step,")
    traind("metrics", created, "--parquet", "-o", str(tmp_path / "m.parquet"))
    assert (tmp_path / "m.parquet").read_bytes()[:4] == b"PAR1"
    traind("report", created, "--html", "-o", str(tmp_path / "r.html"))
    assert created in (tmp_path / "r.html").read_text()


def test_the_daemon_plans_what_is_planned_here(traind: Any):
    there = json.loads(traind("plan", "--preset", "rtx4070-d12", "--json"))
    here = json.loads(traind("plan", "--preset", "rtx4070-d12", "--json", "--offline"))
    for part in ("parameters", "horizon", "hyperparameters", "schedule"):
        assert there[part] == here[part]


def test_a_refusal_names_the_field(traind: Any):
    said = traind("run", "--name", "bad", "--set", "model.depth=0", code=1)
    assert "/model/depth" in said
    assert "/modle" in traind("run", "--name", "bad", "--set", "modle.depth=1", code=1)


def test_a_name_in_use_is_refused(traind: Any, created: str):
    assert created in traind("run", "--name", created, "--no-start", code=1)


def test_an_illegal_move_says_what_is_possible(traind: Any, created: str):
    said = traind("resume", created, code=1)
    assert "created" in said
    assert "hint:" in said


def test_cancel_then_watch_tells_that_it_was_cancelled(traind: Any, created: str):
    traind("watch", created, code=4)
    traind("cancel", created, "--yes", "--wait")
    assert "cancelled" in traind("watch", created, code=5)


def test_the_same_key_creates_once(daemon: Daemon):
    name = f"twice-{time.monotonic_ns()}"
    with Client(daemon.url) as client:
        body = {"name": name, "start": False}
        first = client.create_run(body, key="k" + name)
        assert client.create_run(body, key="k" + name).id == first.id
        with pytest.raises(ApiError) as caught:
            client.create_run({**body, "title": "other"}, key="k" + name)
    assert caught.value.code == "idempotency-mismatch"
    assert TRIES > 1


def test_pages_are_followed(daemon: Daemon):
    with Client(daemon.url) as client:
        for n in range(3):
            client.create_run({"name": f"page-{time.monotonic_ns()}-{n}", "start": False})
        page = client.list_runs(limit=2)
        assert page.has_more
        names = [run.name for run in client.runs()]
    assert len(names) == len(set(names)) >= 3


def test_the_live_stream_brings_events_as_they_happen(daemon: Daemon, created: str):
    with Client(daemon.url) as reader, Client(daemon.url) as client:
        past = client.events(created, newest=True, limit=1).data
        stream = reader.stream(created, after=past[-1].id if past else 0)
        client.cancel(created)
        message = next(m for m in stream if m.id is not None)
        stream.close()  # type: ignore[attr-defined]
    assert message.data["run"] in (created, client_id(daemon, created))


def client_id(daemon: Daemon, name: str) -> str:
    with Client(daemon.url) as client:
        return client.run(name).id


def test_system_parses(daemon: Daemon, traind: Any):
    with Client(daemon.url) as client:
        system = client.system()
    assert system.data_dir == str(daemon.data_dir)
    assert system.devices
