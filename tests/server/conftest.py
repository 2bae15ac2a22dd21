from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.database.db import Database
from server.settings import Settings
from tests.server.asgi import Asgi


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    opened = Database.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def asgi(tmp_path: Path) -> Iterator[Asgi]:
    """The HTTP app on a fresh database of its own, called in-process."""
    made = Asgi(tmp_path / "http")
    yield made
    made.close()
