"""The lab: runs without a daemon, over trainers started from a fork server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.forkserver import ForkServer
from tests.trainer.lab import TINY, Lab, write_corpus


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder)
    return folder


@pytest.fixture
def lab(tmp_path: Path, fork_server: ForkServer, corpus: Path) -> Callable[..., Lab]:
    """make(name, **spec changes): a prepared run of its own."""

    def make(name: str = "a", **changes: Any) -> Lab:
        made = Lab(tmp_path / name, fork_server, {**TINY, **changes})
        made.prepare(corpus)
        return made

    return make
