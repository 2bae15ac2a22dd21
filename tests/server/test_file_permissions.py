"""The data directory is its owner's alone: what is made, and what was there before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from server import file_permissions
from trainer.contract.durable import write_durably


def modes(root: Path) -> dict[str, int]:
    everything = [root, *root.rglob("*")]
    return {
        str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode)
        for path in everything
        if not path.is_symlink()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data directory as an earlier version made it, with one run on another disk."""
    root = tmp_path / "data"
    for name in ("runs/run_1/attempts/0001/order.json", "jobs/job_1/order.json", "notices.json"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        path.chmod(0o644)
    program = root / "jobs/job_1/program"
    program.write_text("")
    program.chmod(0o755)
    other = tmp_path / "disk" / "run_2"
    other.mkdir(parents=True)
    (other / "spec.json").write_text("{}")
    (root / "runs" / "run_2").symlink_to(other)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "text").write_text("")
    (root / "corpora").symlink_to(tmp_path / "shared")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    return root


def test_what_was_there_before_is_closed_to_others(root: Path, tmp_path: Path) -> None:
    assert file_permissions.tighten(root) > 0
    assert all(not mode & 0o077 for mode in modes(root).values())
    assert modes(root)["jobs/job_1/program"] == 0o700
    assert modes(root)["notices.json"] == 0o600
    assert all(not mode & 0o077 for mode in modes(tmp_path / "disk" / "run_2").values())
    assert modes(tmp_path / "shared")["text"] & 0o044  # somebody else's, perhaps
    assert file_permissions.tighten(root) == 0


def test_what_cannot_be_closed_is_said_once_and_stops_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert file_permissions.tighten(root) == 0
    [record] = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "Operation not permitted" in record.getMessage()


def test_what_is_written_durably_is_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_durably(tmp_path / "spec.json", b"{}")
    finally:
        os.umask(before)
    assert modes(tmp_path)["spec.json"] == 0o600
