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
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def serve() -> None:
    import torch  # noqa: F401 - loaded here so that children need not

    import trainer.__main__
    import trainer.jobs.__main__
    import trainer.train.loop
    import trainer.train.setup  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for env in request["ranks"]:
            pids.append(os.fork())
            if pids[-1] == 0:
                _become_trainer(request, env)
        print(json.dumps({"pids": pids}), flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"statuses": statuses}), flush=True)


def _become_trainer(request: dict[str, Any], env: dict[str, str]) -> None:
    from trainer.contract import failpoint

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.setsid()
    os.environ.update(request["env"] | env)
    failpoint._points.cache_clear()
    code = 1
    with contextlib.suppress(BaseException):
        code = importlib.import_module(request["module"]).main(["trainer", *request["argv"]])
    os._exit(code)


def _rank_environments(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def torchrun(directory: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    """One attempt by torchrun itself."""
    return subprocess.run(
        _torchrun_command(directory, ranks),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )


def start_torchrun(directory: Path, ranks: int, **environment: str) -> subprocess.Popen[bytes]:
    """The agent of one attempt by torchrun; what it and its ranks print goes to the log."""
    with (directory / "trainer.log").open("ab") as log:
        return subprocess.Popen(
            _torchrun_command(directory, ranks),
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _torchrun_command(directory: Path, ranks: int) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"),
        *("--nproc-per-node", str(ranks), "-m", "trainer", str(directory)),
    ]


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
        return self.start_ranks(directory, 1, fail, module)[0]

    def start_ranks(
        self,
        directory: Path,
        ranks: int,
        fail: str = "",
        module: str = "trainer.__main__",
        **environment: str,
    ) -> list[int]:
        """Start the ranks of one attempt as torchrun would; their pids."""
        request = {
            "ranks": _rank_environments(ranks),
            "module": module,
            "argv": [str(directory)],
            "env": {**({"TRAIND_FAIL": fail} if fail else {}), **environment},
            "log": str(directory / "trainer.log"),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()["pids"]

    def wait(self) -> int:
        """The exit status of the trainer started last; negative is a signal."""
        return self.wait_ranks()[0]

    def wait_ranks(self) -> list[int]:
        return self._read()["statuses"]

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
