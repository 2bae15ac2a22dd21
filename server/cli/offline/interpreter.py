"""Python interpreter and environment of the programs that the CLI starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import server

ROOT = Path(server.__file__).parents[1]


def trainer_python() -> str:
    """The interpreter with torch: TRAIND_TRAINER_PYTHON, else this one."""
    from server.settings import Settings

    return Settings().trainer_python


def environment() -> dict[str, str]:
    """The environment of a child process; adds a source tree, which need not be installed, to the
    path.

    Only a source tree is added: an installed package's folder contains other packages too, perhaps
    of another Python.
    """
    if not (ROOT / "pyproject.toml").exists():
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def replace_by(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by `python -m module` (exec)."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, environment())
