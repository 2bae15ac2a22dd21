"""The null GPU's environment is made from wheels on disk; --local downloads nothing large."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import clean_environment, package_index
from tests.nullgpu import install


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("index")
    package_index.add(place, "torch", install.TORCH, ("nvidia-cublas",))
    package_index.add(place, "nvidia-cublas", "13.0")
    return place


@pytest.fixture(scope="module")
def served(wheels: Path) -> Iterator[str]:
    """The same index over HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(wheels))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With everything but torch, and no settings of pip's but the index."""
    clean_environment.make(tmp_path / "venv", frozenset({"trainer", "dev"}), with_pip=True)
    for link in (tmp_path / "venv" / "dependencies").glob("torch*"):
        link.unlink()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "venv"


def test_wheels_on_disk_are_installed_once(venv, wheels, monkeypatch, capfd):
    monkeypatch.setenv("PIP_INDEX_URL", wheels.as_uri())
    assert install.main(venv, local=True) == 0
    assert (venv / ".ready").exists()
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    assert install.main(venv, local=True) == 0


def test_what_would_be_downloaded_is_named_and_left_alone(venv, served, monkeypatch, capfd):
    monkeypatch.setenv("PIP_INDEX_URL", served)
    assert install.main(venv, local=True) == install.NOT_LOCAL
    assert "torch, nvidia-cublas" in capfd.readouterr().out
    assert not (venv / ".ready").exists()
