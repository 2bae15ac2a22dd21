"""The Python interpreter and environment of the programs that the CLI starts."""

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
    """The environment, with a source tree on the path: it need not be installed.

    Only then: an installed package's folder holds other packages too, perhaps of another Python.
    """
    if not (ROOT / "pyproject.toml").exists():
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def replace_by(module: str, arguments: Sequence[str]) -> NoReturn:
    """Execute `python -m module` in the place of this process."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, environment())
