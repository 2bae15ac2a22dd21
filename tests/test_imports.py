"""What an import brings along, seen from a fresh interpreter: a linter misses a detour."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "pyarrow", "tiktoken", "safetensors", "rustbpe", "huggingface_hub"}
SERVER = {"fastapi", "sqlalchemy", "alembic", "uvicorn", "server"}


def loaded_by(code: str) -> set[str]:
    """Modules in sys.modules after `code`, which may exit."""
    code = (
        f"import sys, json\ntry:\n    {code}\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(ran.stderr))


def brought_by(module: str) -> set[str]:
    """Top-level packages in sys.modules after `import module`."""
    return {name.partition(".")[0] for name in loaded_by(f"import {module}")}


@pytest.mark.parametrize(
    "module", ["server.main", "server.daemon.serve", "server.cli.app", "server.client"]
)
def test_the_control_plane_is_light(module: str):
    assert brought_by(module) & HEAVY == set()


@pytest.mark.parametrize("module", ["contract.spec", "contract.events", "contract.orders"])
def test_the_contract_is_only_pydantic(module: str):
    brought = brought_by(f"trainer.{module}")
    assert brought & (HEAVY | SERVER) == set()
    assert "pydantic" in brought


@pytest.mark.parametrize("module", ["trainer.__main__", "trainer.jobs.__main__"])
def test_the_trainer_knows_no_server(module: str):
    assert brought_by(module) & SERVER == set()


def test_an_import_that_is_heavy_would_be_seen():
    assert "numpy" in brought_by("numpy") & HEAVY


def test_serve_loads_only_its_own_commands():
    """The daemon keeps what its command line loaded."""
    main = "from server.cli.app import main; main(['{}', '--help'])"
    assert "server.cli.offline.daemon" in loaded_by(main.format("serve"))
    parts = {"server.cli.listing", "server.cli.offline.doctor", "server.cli.watching"}
    assert loaded_by(main.format("serve")) & parts == set()
    assert parts <= loaded_by(main.format("ps"))


def test_the_daemon_loads_one_sqlite_and_no_report():
    loaded = loaded_by(
        "import server.main; from server.database.sqlite import choose_library; choose_library()"
    )
    assert len(loaded & {"sqlite3", "pysqlite3"}) <= 1
    assert "server.reporting.report" not in loaded
