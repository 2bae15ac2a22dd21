"""What only a kernel can do to a program: small disks, memory groups, namespaces, disk images.

Each needs more than root (a container may lack it), so a test that wants one says so with
`needs("…")` and is skipped where the kernel does not allow it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

PAGE = 4096
MEMORY_GROUPS = (  # v1, v2: where groups are made, and the file that holds the limit
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


# --- what there is -------------------------------------------------------------------------------


@cache
def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder), PAGE * 16):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@cache
def can_loop() -> bool:
    if not can_mount() or shutil.which("mkfs.ext4") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        try:
            make_ext4(image, 8 << 20)
            with loop_mounted(image, Path(folder) / "mounted"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@cache
def can_limit_memory() -> bool:
    try:
        with memory_group(64 << 20):
            return Path("/dev/kmsg").exists()
    except OSError:
        return False


@cache
def can_choose_pids() -> bool:
    probe = "echo 4999 > /proc/sys/kernel/ns_last_pid"
    command = ["unshare", "-p", "-f", "--mount-proc", "sh", "-c", probe]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


# --- disks ---------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path, size: int, options: str = "") -> Iterator[Path]:
    """A tmpfs of `size` bytes at `path`."""
    path.mkdir(exist_ok=True)
    named = f"size={size}{options}"
    _run(["mount", "-t", "tmpfs", "-o", named, "tmpfs", str(path)])
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


@contextmanager
def filled(disk: Path, leave: int = 0) -> Iterator[Path]:
    """`disk` with no more than `leave` bytes free; the space is back at the end."""
    filler = disk / f"filler-{uuid.uuid4().hex}"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while shutil.disk_usage(disk).free >= PAGE:
                file.write(bytes(PAGE))
        file.truncate(max(0, file.tell() - leave - leave % PAGE))
    try:
        yield filler
    finally:
        filler.unlink()


def make_ext4(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    _run(["mkfs.ext4", "-q", "-F", str(image)])


@contextmanager
def loop_mounted(image: Path, path: Path) -> Iterator[Path]:
    """The file system of an image file, its journal replayed, at `path`."""
    path.mkdir(exist_ok=True)
    _run(["mount", "-o", "loop", str(image), str(path)])
    try:
        yield path
    finally:
        done = subprocess.run(["umount", str(path)], capture_output=True, check=False)
        if done.returncode:
            _run(["umount", "-l", str(path)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


# --- memory --------------------------------------------------------------------------------------


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group whose processes together may hold `limit` bytes. Raises OSError."""
    for root, name in MEMORY_GROUPS:
        group = root / f"traind-test-{uuid.uuid4().hex}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
            yield group
            return
        except FileNotFoundError:  # this hierarchy has no memory in it
            continue
        finally:
            with suppress(OSError):
                group.rmdir()
    raise OSError("no memory group can be made here")


def join(group: Path) -> None:
    """Put this process into a group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
