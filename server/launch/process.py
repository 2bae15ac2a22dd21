"""Child processes: start by exec, identify after a restart of the daemon, signal by pidfd.

Pids are reused, within one clock tick even with the same start time. A process is therefore
identified by boot id, pid, start time and the token in its environment. Signals are sent through a
pidfd, which is pinned to one process, after all of these are verified; otherwise none is sent.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.contract import rundir
from trainer.contract.rundir import ProcessIdentity
from trainer.contract.text import log_line

TOKEN_VARIABLE = "TRAIND_ATTEMPT_TOKEN"
WSL_GPU = Path("/dev/dxg")
KEPT_VARIABLES = frozenset({"TRAIND_FAIL"})
CPU_JOB_NICENESS = 10
LOG_TAIL_LINES = 30
LOG_TAIL_BYTES = 16_000
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_PROC = Path("/proc")


# --- starting ------------------------------------------------------------------------------------


class Child:
    """A child process of this daemon, reaped by its pid."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid

    def poll(self) -> int | None:
        """Reap the process: its exit code (negative: the signal), or None while it runs."""
        return self._popen.poll()

    def leave(self) -> None:
        """Detach from a running child: it outlives the daemon."""
        if self._popen.poll() is None:
            self._popen.returncode = 0  # prevents Popen's warning about a running child


def spawn(
    command: Sequence[str],
    directory: Path,
    token: str,
    *,
    niceness: int = 0,
    cache_bytes: int | None = None,
    compiled: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[Child, ProcessIdentity | None]:
    """Start the command in a new session, with its output in the log of the directory.

    variables: defaults of environment variables that the daemon's environment does not set.

    Raises OSError if the command cannot be executed. The identity is None if it ended at once.
    """
    with open(directory / rundir.LOG, "ab") as log:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**(variables or {}), **environment(token, cache_bytes, compiled)},
            close_fds=True,
            start_new_session=True,
        )
    if niceness:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, popen.pid, niceness)
    return Child(popen), rundir.identify(popen.pid)


def environment(
    token: str, cache_bytes: int | None = None, compiled: Path | None = None
) -> dict[str, str]:
    """Environment of a child: the daemon's without its settings and secrets, plus the token.

    cache_bytes: maximum size of the token cache. compiled: directory of the compiler caches; the
    default one is lost at a reboot, or with a container.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("TRAIND_") or key in KEPT_VARIABLES
    }
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # cuda:1 is device 1 of nvidia-smi
        **(_compiler_caches(compiled) if compiled is not None else {}),
        **_allocator(kept),
        **kept,
        **({"TRAIND_TOKEN_CACHE_BYTES": str(cache_bytes)} if cache_bytes is not None else {}),
        TOKEN_VARIABLE: token,
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def _compiler_caches(folder: Path) -> dict[str, str]:
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def _allocator(kept: Mapping[str, str]) -> dict[str, str]:
    """CUDA allocator settings: expandable segments avoid fragmentation by evaluations between
    steps. Not on WSL, whose driver does not support them."""
    own = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & kept.keys()
    if own or WSL_GPU.exists():
        return {}
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


# --- identity ------------------------------------------------------------------------------------


def is_alive(identity: ProcessIdentity) -> bool:
    """True if exactly this process is running; False for a zombie."""
    return identity.boot_id == rundir.boot_id() and rundir.identify(identity.pid) == identity


def is_stopped(pid: int) -> bool:
    """True if the process is stopped by a signal or a debugger."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def carries(pid: int, token: str) -> bool:
    """True if the process was started with this token in its environment."""
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except FileNotFoundError:
        return not _PROC.joinpath("self").exists() and _carries_portably(pid, token)
    except OSError as error:
        if error.errno in OUT_OF_FILES:
            raise
        return False
    return f"{TOKEN_VARIABLE}={token}".encode() in environ.split(b"\0")


def variable(pid: int, name: str) -> str | None:
    """Value of a variable in the initial environment of a process; None if it is not readable."""
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError as error:
        if error.errno in OUT_OF_FILES:
            raise
        return None
    start = f"{name}=".encode()
    found = next((item for item in environ.split(b"\0") if item.startswith(start)), None)
    return None if found is None else found[len(start) :].decode("utf-8", "replace")


def leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _carries_portably(pid: int, token: str) -> bool:
    import psutil  # only where there is no /proc

    try:
        return psutil.Process(pid).environ().get(TOKEN_VARIABLE) == token
    except psutil.Error:
        return False


def works_in(pid: int, directory: Path) -> bool:
    """True if the working directory of the process is `directory`, or cannot be determined.

    A copied data directory contains the tokens and pids of the original's trainers, whose working
    directory is another one. If it cannot be determined, the other checks decide.
    """
    try:
        link = _PROC / str(pid) / "cwd"
        if os.readlink(link).endswith(" (deleted)"):
            return True
        there, here = os.stat(link), os.stat(directory)
    except OSError as error:
        if error.errno in OUT_OF_FILES:
            raise
        return True
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def carriers(token: str) -> list[ProcessIdentity]:
    """Live processes with the token in their environment: the trainer and its children."""
    found = (rundir.identify(pid) for pid in _pids() if carries(pid, token))
    return [identity for identity in found if identity is not None]


def _pids() -> list[int]:
    if _PROC.joinpath("self").exists():
        return [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    import psutil

    return psutil.pids()


def leader(token: str) -> ProcessIdentity | None:
    """The session leader among the processes with the token: the trainer itself.

    Child processes of a trainer belong to its session; only the spawned process leads one.
    """
    return next((one for one in carriers(token) if leads_session(one.pid)), None)


# --- signalling ----------------------------------------------------------------------------------


def send(identity: ProcessIdentity, token: str, *signals: signal.Signals) -> bool:
    """Signal exactly this process. Returns False and sends nothing if it is not verified."""
    with _pinned(identity.pid) as pidfd:
        if pidfd is None or not is_alive(identity) or not carries(identity.pid, token):
            return False
        try:
            for number in signals:
                _deliver(pidfd, identity.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
    return True


@contextmanager
def _pinned(pid: int) -> Iterator[int | None]:
    """A pidfd of the process, so that the process verified is the process signalled.

    -1 if the system has no pidfd; None if there is no such process.
    """
    if not hasattr(os, "pidfd_open"):
        yield -1
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _deliver(pidfd: int, pid: int, number: signal.Signals) -> None:
    if pidfd >= 0:
        signal.pidfd_send_signal(pidfd, number)
    else:
        os.kill(pid, number)


def continue_helpers(token: str) -> None:
    """Send SIGCONT to all processes with the token: the children of a stopped trainer may be
    stopped too."""
    for identity in carriers(token):
        send(identity, token, signal.SIGCONT)


def kill_carriers(token: str) -> int:
    """Send SIGKILL to all processes with the token. Returns their number."""
    found = carriers(token)
    for identity in found:
        send(identity, token, signal.SIGKILL)
    return len(found)


# --- log -----------------------------------------------------------------------------------------


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Last lines of a log, with control characters escaped; empty if it is not readable."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LOG_TAIL_BYTES))
            text = log.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(log_line(line) for line in text.split("\n")[-lines - 1 :]).strip("\n")
