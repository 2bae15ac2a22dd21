"""Helper processes of the trainer, which end when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import trainer


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """`python -m module arguments... <own pid>` with the same packages on its path."""
    command = [sys.executable, "-P", "-m", module, *arguments, str(os.getpid())]
    root = str(Path(trainer.__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, inherited] if inherited else [root])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)


def end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.terminate()
        process.wait()
