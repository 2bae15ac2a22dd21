"""Starts trainers from a process that has torch loaded: `python -m tests.trainer.forkserver`.

Each request line {"argv", "env", "log"} forks one child that runs the trainer's own main; answered
by its pid, and by its wait status when it is gone. Only for campaigns about bit equality: what
supervision depends on is tested with real processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def serve() -> None:
    import torch  # noqa: F401 - loaded here so that children need not

    import trainer.__main__
    import trainer.jobs.__main__
    import trainer.train.loop
    import trainer.train.session  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_trainer(request)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def _become_trainer(request: dict[str, Any]) -> None:
    from trainer.contract import failpoint

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.setsid()
    os.environ.update(request["env"])
    failpoint._points.cache_clear()
    code = 1
    with contextlib.suppress(BaseException):
        code = importlib.import_module(request["module"]).main(["trainer", *request["argv"]])
    os._exit(code)


class ForkServer:
    """One fork server; one trainer at a time."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("TRAIND_FAIL", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).parents[2],
        )

    def start(self, directory: Path, fail: str = "", module: str = "trainer.__main__") -> int:
        """Start a trainer in an attempt directory, or a job in its own; its pid."""
        request = {
            "module": module,
            "argv": [str(directory)],
            "env": {"TRAIND_FAIL": fail} if fail else {},
            "log": str(directory / "trainer.log"),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()["pid"]

    def wait(self) -> int:
        """The exit status of the trainer started last; negative is a signal."""
        return self._read()["status"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


if __name__ == "__main__":
    serve()
