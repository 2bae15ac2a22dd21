"""Why a process ended: each cause has its reason, and its sentence names what a person can see."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import store
from trainer.contract import os_errors
from trainer.contract.exits import Reason as R
from trainer.contract.journal import JournalError
from trainer.contract.rundir import Damaged
from trainer.data import prepared
from trainer.data.errors import DataChanged, DataError
from trainer.runtime.process import explain


def os_error(number: int, path: str | None = "/data/x") -> OSError:
    return OSError(number, os.strerror(number), path)


def led_to(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def named(name: str, said: str = "it went wrong") -> Exception:
    """An error of a library that need not be here."""
    return type(name, (RuntimeError,), {"__module__": "library"})(said)


CAUSES = [
    (torch.OutOfMemoryError("CUDA out of memory"), R.out_of_memory, "CUDA out of memory"),
    (MemoryError(), R.host_out_of_memory, "MemoryError"),
    (os_error(errno.ENOMEM), R.host_out_of_memory, "Cannot allocate memory: /data/x"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), R.host_out_of_memory, "Default"),
    (os_error(errno.EMFILE), R.too_many_open_files, "Too many open files: /data/x"),
    (os_error(errno.ENFILE), R.too_many_open_files, "Too many open files in system: /data/x"),
    (RuntimeError("Too many open files (os error 24)"), R.too_many_open_files, "Too many"),
    (led_to(DataError("x", "a.txt cannot be read"), os_error(errno.EMFILE)),
     R.too_many_open_files, "a.txt cannot be read"),
    (os_error(errno.ENOSPC), R.disk_full, "No space left on device: /data/x"),
    (os_error(errno.EDQUOT), R.disk_full, "/data/x"),
    (led_to(DataError("x", "the cache cannot be written"), os_error(errno.ENOSPC)),
     R.disk_full, "the cache"),
    (DataChanged("/data/x", "cannot be found any more"), R.data_changed, "/data/x cannot be found"),
    (DataError("format", "no text in /data"), R.data_unusable, "no text in /data"),
    (store.Bad("no checkpoint is left in /runs/x"), R.no_checkpoint, "no checkpoint is left in"),
    (os_error(errno.EACCES), R.not_permitted, "Permission denied: /data/x"),
    (os_error(errno.ENOENT), R.file_missing, "No such file or directory: /data/x"),
    (os_error(errno.EIO), R.io_error, "Input/output error: /data/x"),
    (os_error(errno.EROFS), R.io_error, "Read-only file system: /data/x"),
    (Damaged("/runs/x/data.json is damaged"), R.io_error, "/runs/x/data.json is damaged"),
    (JournalError("the outbox is not writable"), R.io_error, "the outbox is not writable"),
    (ConnectionResetError(errno.ECONNRESET, "reset"), R.network_failed, "reset"),
    (socket.gaierror(-2, "Name or service not known"), R.network_failed, "Name or service"),
    (ModuleNotFoundError("No module named 'torch'"), R.software_missing, "No module named 'torch'"),
    (RuntimeError("CUDA error: no kernel image is available"), R.software_missing, "no kernel"),
    (named("InductorError"), R.compile_failed, "InductorError: it went wrong"),
    (led_to(named("BackendCompilerFailed"), torch.OutOfMemoryError("CUDA out of memory")),
     R.out_of_memory, "BackendCompilerFailed"),
    (RuntimeError("CUDA error: an illegal memory access"), R.gpu_lost, "illegal memory access"),
    (ValueError("something"), R.crashed, "ValueError: something"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "reason", "words"), CAUSES)
def test_a_cause_has_its_reason_and_its_words(error: Exception, reason: R, words: str) -> None:
    found, said = explain(error)
    assert found is reason
    assert said.startswith(words) or words in said
    assert not said.startswith(("Bad", "DataChanged", "DataError", "OSError"))


NOT_DAMAGED = [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM, errno.ESTALE]


@pytest.mark.parametrize("number", NOT_DAMAGED)
def test_what_cannot_be_opened_just_now_is_neither_damaged_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kept = tmp_path / "step-000000001-a0001"
    kept.mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise os_error(number)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        store.read_manifest(kept)
    file = prepared.DataFile(path="/data/x", size=1, sha256="0")
    with pytest.raises(OSError, match=os.strerror(number)):
        prepared.verify_file(file)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EISDIR])
def test_what_the_disk_says_of_a_file_is(number: int) -> None:
    assert os_errors.is_about_the_file(os_error(number))


def test_a_missing_checkpoint_names_its_directory(tmp_path: Path) -> None:
    gone, torn = tmp_path / "step-000000001-a0001", tmp_path / "step-000000002-a0001"
    torn.mkdir()
    for path, what in ((gone, "the directory is missing"), (torn, "manifest.json is missing")):
        with pytest.raises(store.Bad) as caught:
            store.require(path)
        assert explain(caught.value) == (R.no_checkpoint, f"checkpoint {path}: {what}")
