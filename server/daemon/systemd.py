"""The systemd user unit: install, remove, inspect. Required for runs to resume after a reboot.

Type=notify and the watchdog restart a daemon that hangs. With KillMode=process trainers keep
running across a restart of the daemon; with OOMPolicy=continue the daemon keeps running after the
out-of-memory kill of a trainer. User services stop at logout and do not start at boot unless
lingering is on: `loginctl enable-linger`.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from trainer.contract import durable

UNIT_NAME = "traind.service"
TIMEOUT_SECONDS = 30.0
WATCHDOG_SECONDS = 120
START_SECONDS = 600  # the first start after an upgrade backs up and migrates
# Compatible with training, and available to a user manager without privileges. Excluded: a
# read-only or private file system (corpora, exports and compiler caches may be anywhere), private
# devices (the GPU), MemoryDenyWriteExecute (torch's compiler), system call filters (CUDA, perf).
SANDBOX = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native",
    "LimitNOFILE=65536",
)


class ServiceError(Exception):
    """A systemctl command failed or systemd is missing; the message states the remedy."""


@dataclass(frozen=True)
class UnitOutcome:
    """Result of a change to the unit. done: steps taken. hints: steps for the user."""

    path: Path
    done: list[str]
    hints: list[str]


def unit(flags: list[str], *, stop_trainers: bool = False, python: str = sys.executable) -> str:
    """Text of the unit. flags: of `traind serve`. Raises ServiceError for a control character."""
    command = [python, "-P", "-m", "server.cli.app", "serve", *flags]
    environment = [f"PATH={os.environ.get('PATH', os.defpath)}"]
    if os.environ.get("PYTHONPATH"):
        environment.append(f"PYTHONPATH={os.environ['PYTHONPATH']}")
    # with --stop-trainers the daemon waits for their last checkpoints
    stop_timeout = "3min" if stop_trainers else "30s"
    return "\n".join(
        [
            "[Unit]",
            "Description=traind, a training daemon",
            "After=network-online.target",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=10",
            "",
            "[Service]",
            "Type=notify",  # active when the daemon is ready, not when it is forked
            "NotifyAccess=main",
            f"WatchdogSec={WATCHDOG_SECONDS}",
            f"ExecStart={' '.join(_quoted(part, is_command=True) for part in command)}",
            *(f"Environment={_quoted(pair)}" for pair in environment),
            "Restart=on-failure",
            "RestartSec=2",
            "KillMode=process",
            "OOMPolicy=continue",
            f"TimeoutStopSec={stop_timeout}",
            f"TimeoutStartSec={START_SECONDS}",
            "UMask=0077",
            *SANDBOX,
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def unit_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd" / "user" / UNIT_NAME


def install(text: str) -> UnitOutcome:
    """Write, enable and start the unit. Without a systemd user manager, only write it."""
    path = unit_path()
    durable.write_shared(path, text.encode())
    done, hints = [f"wrote {path}"], []
    if not has_user_manager():
        hints.append(
            "no systemd user manager is available in this session; log in as this user and run: "
            f"systemctl --user daemon-reload && systemctl --user enable --now {UNIT_NAME}"
        )
    else:
        _systemctl("daemon-reload")
        _systemctl("enable", UNIT_NAME)
        _systemctl(
            "restart", UNIT_NAME
        )  # restart, so that the flags of an earlier unit no longer apply
        done.append("enabled and started the service; log: journalctl --user -u traind -f")
    if not lingers():
        hints.append(
            "user services stop at logout and do not start at boot; to change that, run: "
            f"loginctl enable-linger {getpass.getuser()}"
        )
    return UnitOutcome(path, done, hints)


def uninstall() -> UnitOutcome:
    """Stop, disable and remove the unit. Runs, data and running trainers are kept."""
    path = unit_path()
    done: list[str] = []
    if has_user_manager() and path.exists():
        _systemctl("disable", "--now", UNIT_NAME)
        done.append("stopped and disabled the service; running trainers continue")
    if path.exists():
        path.unlink()
        done.append(f"removed {path}")
    if has_user_manager():
        _systemctl("daemon-reload")
    return UnitOutcome(path, done or [f"{path} does not exist"], [])


def has_user_manager() -> bool:
    if shutil.which("systemctl") is None:
        return False
    answer = _run("show-environment")
    return answer is not None and answer.returncode == 0


def lingers() -> bool:
    """True if lingering is on: the user's services run without a login."""
    return Path("/var/lib/systemd/linger", getpass.getuser()).exists()


def _systemctl(*arguments: str) -> None:
    answer = _run(*arguments)
    if answer is None:
        raise ServiceError(f"systemctl --user {' '.join(arguments)} timed out or cannot be run")
    if answer.returncode:
        message = (answer.stderr or answer.stdout).strip()
        raise ServiceError(f"systemctl --user {' '.join(arguments)}: {message}")


def _run(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["systemctl", "--user", "--no-pager", *arguments],
            capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def _quoted(value: str, *, is_command: bool = False) -> str:
    """Quote for a unit file: escapes specifiers (%), and variables ($) in commands (systemd.syntax,
    systemd.service)."""
    if any(ord(char) < 0x20 for char in value):
        raise ServiceError(f"a unit file cannot hold the control character in {value!r}")
    value = value.replace("%", "%%")
    if is_command:
        value = value.replace("$", "$$")
    if value and all(char.isalnum() or char in "-_./:=,@%+" for char in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
