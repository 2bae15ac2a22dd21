"""The durable writer: a whole old or a whole new file, and no temporary ones left."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

from trainer.contract import durable, failpoint

ROOT = Path(__file__).parents[2]
# what renames for another reason than to replace a file by a complete one
RENAMES = {
    "trainer/contract/durable.py": "the writer itself",
    "trainer/checkpoint/fence.py": "a checkpoint is committed only while its attempt holds the run",
    "trainer/checkpoint/store.py": "a checkpoint leaves its name before its files are removed",
    "server/domain/checkpoints.py": "a checkpoint leaves its name before its files are removed",
    "server/supervision/job_processes.py": "a directory of before a restore is set aside",
    "server/maintenance/rebuild.py": "the old database is set aside",
}


def fail_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: object, target: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))

    monkeypatch.setattr(os, "replace", replace)


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    durable.write_atomically(path, b"new", 0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    durable.write_durably(path, b"secret")
    assert path.stat().st_mode & 0o777 == durable.OWNER_ONLY
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_copy_has_the_content_and_leaves_the_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(2_500_000))
    target.write_bytes(b"old")
    durable.copy_durably(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_what_others_wrote_is_put_in_place(tmp_path: Path) -> None:
    folder, into = tmp_path / ".building", tmp_path / "export"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"w")
    durable.put_in_place(folder, into)
    assert (into / "deep" / "weights").read_bytes() == b"w"
    made = tmp_path / "made"
    made.write_bytes(b"new")
    durable.put_in_place(made, into / "deep" / "weights")
    assert (into / "deep" / "weights").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("write", [durable.write_atomically, durable.write_durably])
def test_a_failed_write_leaves_the_old_file_alone(
    write: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    fail_renames(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        write(path, b"new")  # type: ignore[operator]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_copy_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    failpoint._points.cache_clear()
    monkeypatch.setenv("TRAIND_FAIL", "durable.fsync=error(28)")
    with pytest.raises(OSError, match="No space left"):
        durable.copy_durably(source, target)
    failpoint._points.cache_clear()
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_a_directory_with_content_is_not_replaced(tmp_path: Path) -> None:
    for name in ("made", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match=r"not empty|exists"):
        durable.put_in_place(tmp_path / "made", tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "there"


def renames(source: str) -> list[int]:
    """Lines that rename a file: `os.replace`, `os.rename`, `shutil.move`, `path.replace(other)`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _renames(node)
    ]


def _renames(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    module = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
    name = call.func.attr
    if module in ("os", "shutil"):
        return name in ("replace", "rename", "renames", "move")
    # a path's: text.replace takes two arguments, dataclasses.replace and others keywords
    return name in ("replace", "rename") and len(call.args) == 1 and not call.keywords


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("os.replace(a, b)", 1), ("temp.rename(path)", 1), ("path.replace(other)", 1),
        ("shutil.move(a, b)", 1), ("text.replace('a', 'b')", 0), ("replace(view, a=1)", 0),
        ("when.replace(hour=1)", 0), ("code.replace()", 0),
    ],
)  # fmt: skip
def test_a_rename_is_found(source: str, found: int) -> None:
    assert len(renames(source)) == found


def test_files_are_replaced_by_the_durable_writer_alone() -> None:
    found = {
        str(path.relative_to(ROOT))
        for program in ("trainer", "server")
        for path in (ROOT / program).rglob("*.py")
        if renames(path.read_text(encoding="utf-8"))
    }
    assert found == RENAMES.keys()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
