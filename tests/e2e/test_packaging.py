"""The wheel and the container's steps: installed elsewhere, served from a folder not our own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import migrations
from tests.e2e import clean_environment
from tests.e2e.clean_environment import ROOT
from tests.e2e.dockerfile import instructions
from tests.server.live_server import until

TINY: dict[str, Any] = {
    "model": {
        "depth": 2, "aspect_ratio": 16, "head_dim": 16, "sequence_len": 64, "vocab_size": 320,
    },
    "batch": {"tokens": 512, "device_batch_size": 8},
    "horizon": {"steps": 10_000},
    "numerics": {"threads": 1, "compile": False},
    "device": "cpu",
}  # fmt: skip
pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("packaging")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    return clean_environment.build_wheel(clean_environment.copy_sources(place / "src"), place)


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and its trainer."""
    place = tmp_path_factory.mktemp("whole") / "venv"
    python = clean_environment.make(place, frozenset({"trainer"}))
    clean_environment.install(wheel, python)
    return python


@pytest.fixture(scope="module")
def control_plane(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel alone: no torch."""
    place = tmp_path_factory.mktemp("control-plane") / "venv"
    python = clean_environment.make(place, frozenset())
    clean_environment.install(wheel, python)
    return python


# --- what travels --------------------------------------------------------------------------------


def test_the_wheel_holds_every_module_every_web_file_the_migrations_and_alembic_ini(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for package in ("server", "trainer", "migrations")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (ini,) = (name for name in held if name.endswith("alembic.ini"))
    assert held - {ini} == ours
    assert {"server/web/index.html", "server/web/vendor/uplot/uPlot.esm.js"} <= held
    assert {f"migrations/versions/{name}" for name in _revision_files()} <= held


def _revision_files() -> list[str]:
    found = [p.name for p in (ROOT / "migrations" / "versions").glob("*.py")]
    assert len([name for name in found if name != "__init__.py"]) == len(migrations.REVISIONS)
    return found


# --- serving -------------------------------------------------------------------------------------


def test_an_installed_wheel_trains_from_a_folder_with_packages_of_our_names(
    whole: Path, tmp_path: Path
):
    folder = _folder_with_decoys(tmp_path)
    _would_be_noticed(whole, folder)
    text = tmp_path / "text"
    text.mkdir()
    for path in (ROOT / "server").glob("*.py"):
        (text / f"{path.stem}.txt").write_text(path.read_text() or "empty")
    command = [str(whole.with_name("traind")), "serve"]
    with _serving(command, folder, tmp_path) as daemon:
        _serves_its_dashboard(daemon)
        body = {"name": "first", **TINY, "data": {"source": "text", "path": str(text)}}
        made = daemon.request("POST", "/v1/runs", json=body)
        assert made.status_code == 201, made.text
        until(lambda: _has_stepped(daemon), 200)
        assert daemon.request("POST", "/v1/runs/first/cancel").status_code == 202
        until(lambda: daemon.request("GET", "/v1/runs/first").json()["state"] == "cancelled", 60)
    assert not list(folder.glob("*/imported"))
    assert sorted(p.name for p in folder.iterdir()) == ["server", "trainer"]


def _folder_with_decoys(tmp_path: Path) -> Path:
    """A working directory whose `trainer` and `server` write down that they were imported."""
    folder = tmp_path / "elsewhere"
    for name in ("trainer", "server"):
        decoy = folder / name
        decoy.mkdir(parents=True)
        told = (
            "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\nraise SystemExit"
        )
        (decoy / "__init__.py").write_text(told)
        (decoy / "__main__.py").write_text(told)
    return folder


def _would_be_noticed(python: Path, folder: Path) -> None:
    """Without -P the folder one stands in comes first."""
    for arguments, imported in ((["-m", "trainer"], True), (["-P", "-m", "trainer"], False)):
        subprocess.run([str(python), *arguments], cwd=folder, capture_output=True, timeout=120)
        told = folder / "trainer" / "imported"
        assert told.exists() is imported
        told.unlink(missing_ok=True)


def _serves_its_dashboard(daemon: Daemon) -> None:
    for path in ("/", "/static/app.js", "/static/vendor/uplot/uPlot.esm.js", "/docs"):
        answer = daemon.request("GET", path)
        assert answer.status_code == 200, path
        assert len(answer.content) > 500, path
    version = re.search(r'build_info\{version="([^"]+)"', daemon.request("GET", "/metrics").text)
    assert version is not None
    assert version[1] == daemon.request("GET", "/v1/system").json()["version"] != "unreleased"


def _has_stepped(daemon: Daemon) -> bool:
    now = daemon.request("GET", "/v1/runs/first/progress").json()
    assert now["state"] != "failed", now["reason_message"]
    return now["step"] >= 3


def test_the_control_plane_is_ready_without_torch(control_plane: Path, tmp_path: Path):
    imported = subprocess.run(
        [str(control_plane), "-I", "-c", _IMPORT_ALL], capture_output=True, text=True, timeout=120
    )
    assert imported.returncode == 0, imported.stderr
    modules, without = json.loads(imported.stdout)
    assert modules > 60
    assert without == ["torch", "numpy", "pyarrow", "tiktoken", "safetensors"]
    command = [str(control_plane.with_name("traind")), "serve"]
    with _serving(command, tmp_path, tmp_path) as daemon:
        assert daemon.request("GET", "/readyz").json() == {"status": "ready"}
        assert daemon.request("POST", "/v1/plan", json={"name": "x"}).status_code == 200
        assert daemon.request("GET", "/v1/system").json()["versions"]["torch"] is None


_IMPORT_ALL = """
import importlib, importlib.util, json, pkgutil, server
names = [m.name for m in pkgutil.walk_packages(server.__path__, "server.")]
for name in names: importlib.import_module(name)
absent = ("torch", "numpy", "pyarrow", "tiktoken", "safetensors")
print(json.dumps([len(names), [n for n in absent if importlib.util.find_spec(n) is None]]))
"""


def test_alembic_finds_the_migrations_of_an_installed_wheel(control_plane: Path, tmp_path: Path):
    ini = control_plane.parents[1] / "share" / "traind" / "alembic.ini"
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = _environment(tmp_path)
    for command, said in (("upgrade head", ""), ("current", migrations.HEAD), ("check", "No new")):
        ran = subprocess.run(
            [str(control_plane), "-P", "-m", "alembic", "-c", str(ini), *command.split()],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert said in ran.stdout


# --- the container's steps -----------------------------------------------------------------------


def test_the_steps_of_the_dockerfile_make_a_daemon_that_is_healthy_and_ends(tmp_path: Path):
    """COPY, RUN install.sh, ENTRYPOINT, HEALTHCHECK and STOPSIGNAL, in a clean environment."""
    steps = instructions(ROOT / "docker" / "Dockerfile")
    source, venv, data = tmp_path / "opt/src", tmp_path / "opt/traind", tmp_path / "data"
    copied = tuple(n for i in steps if i.name == "COPY" for n in i.words[:-1])
    clean_environment.copy_sources(source, copied)
    (install,) = (i.text for i in steps if i.name == "RUN" and "install.sh" in i.text)
    script = install[install.index("sh docker/install.sh") :].replace("/opt/traind", str(venv))
    extras = frozenset(script.split()[3].split(","))
    assert "trainer" in extras
    clean_environment.make(venv, extras, with_pip=True)
    # the packages are there: pip asks no index, and builds with the setuptools that is there
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    ran = subprocess.run(
        ["sh", "-c", script], cwd=source, env=_environment(tmp_path) | offline,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (venv / "share" / "traind" / "alembic.ini").exists()

    by_name = {i.name: i for i in steps}
    start = [*json.loads(by_name["ENTRYPOINT"].text), *json.loads(by_name["CMD"].text)]
    assert start[:2] == ["/usr/bin/tini", "--"]
    told = [w.replace("/opt/traind", str(venv)).replace("0.0.0.0", "127.0.0.1") for w in start[2:]]
    stop = getattr(signal, by_name["STOPSIGNAL"].text)
    data.mkdir()
    with _serving(told, data, tmp_path, stop=stop, TRAIND_AUTH="always") as daemon:
        check = by_name["HEALTHCHECK"].text.partition("CMD ")[2]
        probe = [part.replace("/opt/traind", str(venv)) for part in json.loads(check)]
        healthy = [part.replace("8321", str(daemon.port)) for part in probe]
        assert subprocess.run(healthy, timeout=60).returncode == 0
        assert daemon.request("GET", "/v1/runs").status_code == 401
        token = (tmp_path / "data" / "token").read_text().strip()
        bearer = {"Authorization": f"Bearer {token}"}
        assert daemon.request("GET", "/v1/runs", headers=bearer).status_code == 200
    assert subprocess.run(healthy, timeout=60, stderr=subprocess.DEVNULL).returncode != 0


# --- a daemon of an environment ------------------------------------------------------------------


@dataclass(frozen=True)
class Daemon:
    port: int
    request: Callable[..., httpx.Response]


@contextmanager
def _serving(
    command: list[str], cwd: Path, tmp_path: Path, stop: int = signal.SIGTERM, **more: str
) -> Iterator[Daemon]:
    """The daemon as a process in `cwd`, its data in tmp_path/data; `stop` ends it with status 0."""
    log, said = tmp_path / "daemon.log", tmp_path / "data" / "daemon.json"
    environment = _environment(tmp_path) | {"TRAIND_PORT": "0", "TRAIND_STOP_TRAINERS": "1"} | more
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=file, stderr=file)
    try:

        def told() -> bool:
            assert process.poll() is None, log.read_text()
            return said.exists()

        until(told, 90)
        url = json.loads(said.read_text())["url"]
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            until(lambda: _is_ready(client), 60)
            yield Daemon(int(url.rpartition(":")[2]), client.request)
        process.send_signal(stop)
        assert process.wait(90) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _environment(tmp_path: Path) -> dict[str, str]:
    """A login of its own: no PYTHONPATH, no settings of ours, no virtual environment."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "TRAIND_DATA_DIR": str(tmp_path / "data"),
    }
