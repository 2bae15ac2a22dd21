"""A `.pt` file is looked into before torch reads it: a few hundred bytes cost no gigabytes."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from trainer.data import torch_archive
from trainer.data.torch_archive import ArchiveRefused
from trainer.interop import torchfile
from trainer.interop.errors import InteropError

GIGABYTE = 1 << 30


def _called(module: str, name: str, *arguments: object) -> bytes:
    """A pickle of `module.name(*arguments)`."""
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


BOMBS = {
    "bytearray": _called("__builtin__", "bytearray", GIGABYTE),
    "bytearray of python 3": _called("builtins", "bytearray", GIGABYTE),
    "bytearray twenty times": b"\x80\x02("
    + (b"c__builtin__\nbytearray\n" + pickle.dumps((GIGABYTE,), protocol=2)[2:-1] + b"R") * 20
    + b"t.",
    "bytes by codecs": _called("_codecs", "encode", "x", "latin1"),
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "LONG4": b"\x80\x02\x8b" + struct.pack("<i", 300) + b"\x7f" * 300 + b".",
    "a long text number": b"I" + b"9" * 100_000 + b"\n.",
    "a counter": _called("collections", "Counter", "x" * 50),
    "a tensor maker": _called("torch", "zeros", GIGABYTE),
    "an empty tensor": _called("torch._utils", "_rebuild_meta_tensor_no_storage", torch.float32),
    "a module's function": _called("torch.storage", "_load_from_bytes", b"x"),
    "duplicating": b"\x80\x02]" + b"2a" * 40 + b".",
    "newobj": b"\x80\x02ctorch\nTensor\n)\x81.",
    "an empty pickle": b"",
    "half a pickle": b"\x80\x02}q\x00(X\x05\x00",
}


def archive(path: Path, content: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/version", b"3\n")
        for name, value in entries.items():
            made.writestr(f"archive/{name}", value)
    return path


@pytest.mark.no_cover  # it measures memory, which tracing adds to
@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_costs_little(case: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", BOMBS[case])
    tracemalloc.start()
    with pytest.raises(InteropError, match=r"a\.pt"):
        torchfile.load(path, tmp_path, 1 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_the_bomb_is_one_for_torch_alone(tmp_path: Path) -> None:
    """What is refused above is made by torch itself: the test can fail."""
    small = _called("__builtin__", "bytearray", 5_000_000)
    path = archive(tmp_path / "a.pt", small, byteorder=b"little")
    assert len(torch.load(path, weights_only=True)) == 5_000_000


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pt")
    with pytest.raises(InteropError, match="larger than what the file holds"):
        torchfile.load(tmp_path / "a.pt", tmp_path, 1 << 30)


def test_a_storage_larger_than_its_entry_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(64, dtype=torch.float32)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(
        tmp_path / "bad.pt", "w"
    ) as bad:  # fmt: skip
        for entry in good.infolist():
            content = good.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"K@", b"J\x00\x00\x00\x01")  # 64 -> 16,777,216
            bad.writestr(entry.filename, content)
    with pytest.raises(InteropError):
        torchfile.load(tmp_path / "bad.pt", tmp_path, 1 << 30)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"x": torch.ones(3)}, path)
    with zipfile.ZipFile(path, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr(made.infolist()[0].filename, b"\x80\x02N.")
    with pytest.raises(InteropError, match="two entries of one name"):
        torchfile.load(path, tmp_path, 1 << 30)


def test_what_a_checkpoint_holds_is_read(tmp_path: Path) -> None:
    shared = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    content = {
        "weights": OrderedDict(a=shared, b=shared[1], c=torch.nn.Parameter(torch.ones(2))),
        "dtypes": [torch.float16, torch.bfloat16],
        "sizes": torch.Size([2, 3]),
        "numbers": (1, -5, 2**40, 1.5, None, True, "x" * 300, {1: [2]}, ()),
        "ints": torch.arange(5),
        "bytes": torch.zeros(4, dtype=torch.uint8),
    }
    torch.save(content, tmp_path / "a.pt")
    found = torchfile.load(tmp_path / "a.pt", tmp_path, 1 << 20)
    assert torch.equal(found["weights"]["b"], shared[1])
    assert found["numbers"] == content["numbers"]
    assert found["dtypes"] == content["dtypes"]


def test_what_refers_to_itself_ends(tmp_path: Path) -> None:
    loop: dict = {"x": torch.ones(2)}
    loop["self"] = loop
    torch.save(loop, tmp_path / "a.pt")
    assert torchfile.load(tmp_path / "a.pt", tmp_path, 1 << 20)["self"]["x"].sum() == 2


def test_a_compressed_or_large_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", bytes(1_000_000))
    with pytest.raises(ArchiveRefused, match="compressed"):
        torch_archive.check(tmp_path / "a.pt", 1 << 30)
    torch.save(torch.ones(1000), tmp_path / "b.pt")
    with pytest.raises(ArchiveRefused, match="unpacks to more"):
        torch_archive.check(tmp_path / "b.pt", 100)
