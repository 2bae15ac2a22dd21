"""`python -m trainer.evaluate.fetch core`: download, verify and unpack the CORE bundle.

The archive is hashed as it streams, unpacked into a directory beside the target and renamed into
place, so the target is either complete or absent. The sha256 of every file is recorded, and
`load_bundle` verifies the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx
import platformdirs

from trainer.contract import units
from trainer.contract.durable import put_in_place, write_durably
from trainer.contract.rundir import DataDir
from trainer.evaluate.core_bundle import RECORD, BundleError, load_bundle

# nanochat's public bundle: the constant EVAL_BUNDLE_URL of its scripts/base_eval.py
CORE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
MAX_ARCHIVE_BYTES = 2_000_000_000
MAX_UNPACKED_BYTES = 8_000_000_000
MAX_FILES = 10_000
MAX_DIRECTORY_BYTES = 16_000_000  # of the archive's own list of files, which is read at once
CHUNK_BYTES = 1_000_000
TIMEOUT_SECONDS = 60.0

ReportBytes = Callable[[int, int | None], None]


class FetchError(RuntimeError):
    """Fetching failed and nothing was installed; the message gives the cause."""


def fetch(
    into: Path, url: str = CORE_URL, sha256: str | None = None, progress: ReportBytes | None = None
) -> str:
    """Install the bundle at `url` as directory `into`; returns the sha256 of the archive.

    progress(bytes so far, total or None). Raises FetchError; `into` is then unchanged.
    """
    into = into.absolute()
    if into.exists():
        raise FetchError(f"{into} is there already: remove it first, or name another directory")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as scratch:
        archive, unpacked = Path(scratch) / "archive.zip", Path(scratch) / "unpacked"
        found = download(url, archive, progress)
        if sha256 is not None and found != sha256.lower():
            raise FetchError(f"the archive's sha256 is {found}, not {sha256.lower()}")
        files = unzip(archive, unpacked)
        root = _bundle_root(unpacked)
        _record(root, url, found, _below(root.relative_to(unpacked), files))
        try:
            load_bundle(root)
        except BundleError as error:
            raise FetchError(f"the archive holds no usable bundle: {error}") from None
        put_in_place(root, into)
    return found


def download(url: str, path: Path, progress: ReportBytes | None = None) -> str:
    """Stream `url` into `path`; returns its sha256. Raises FetchError."""
    digest, done = hashlib.sha256(), 0
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer,
            path.open("wb") as file,
        ):
            answer.raise_for_status()
            said = answer.headers.get("content-length", "")
            total = int(said) if said.isdigit() else None
            for chunk in answer.iter_raw(CHUNK_BYTES):
                done += len(chunk)
                if done > MAX_ARCHIVE_BYTES:
                    raise FetchError(f"{url} is larger than {MAX_ARCHIVE_BYTES:,} bytes")
                file.write(chunk)
                digest.update(chunk)
                if progress is not None:
                    progress(done, total)
            if total is not None and done != total:
                raise FetchError(f"{url} ended after {done:,} of {total:,} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"cannot download {url}: {error or type(error).__name__}") from None
    except OSError as error:
        raise FetchError(f"cannot write {path.parent}: {error.strerror or error}") from None
    return digest.hexdigest()


# --- unpacking -----------------------------------------------------------------------------------


def unzip(archive: Path, into: Path) -> dict[str, str]:
    """Unpack regular files only; returns {relative path: sha256}. Raises FetchError.

    Limits apply to the bytes written, whatever sizes the archive states.
    """
    try:
        _check_directory_size(archive)
        with zipfile.ZipFile(archive) as opened:
            entries = [e for e in opened.infolist() if not e.is_dir()]
            if len(entries) > MAX_FILES:
                raise FetchError(f"the archive holds more than {MAX_FILES:,} files")
            names = [_safe_name(entry) for entry in entries]
            if len(set(names)) != len(names):
                raise FetchError("the archive holds a file twice")
            return _extract(opened, dict(zip(names, entries, strict=True)), into)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, OSError) as error:
        raise FetchError(f"the archive cannot be unpacked: {error}") from None


def _check_directory_size(archive: Path) -> None:
    """Refuse an oversized file list (at the archive's end) before reading it whole."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - 65_557))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise FetchError("the archive is not a zip file")
    count, length = struct.unpack_from("<HI", tail, at + 10)
    if count == 0xFFFF or length > MAX_DIRECTORY_BYTES:
        raise FetchError("the archive's list of files is too long")


def _safe_name(entry: zipfile.ZipInfo) -> str:
    name, mode = entry.filename, entry.external_attr >> 16
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(c in name for c in "\\\0:"):
        raise FetchError(f"the archive holds a path that leads elsewhere: {name!r}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise FetchError(f"the archive holds something that is no plain file: {name!r}")
    if entry.flag_bits & 1:
        raise FetchError("the archive is encrypted")
    return "/".join(parts)


def _extract(
    opened: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], into: Path
) -> dict[str, str]:
    into.mkdir()
    found, left = {}, MAX_UNPACKED_BYTES
    for name, entry in entries.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with opened.open(entry) as source, target.open("xb") as file:
            while chunk := source.read(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise FetchError(f"the archive unpacks to over {MAX_UNPACKED_BYTES:,} bytes")
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        found[name] = digest.hexdigest()
    return found


def _bundle_root(unpacked: Path) -> Path:
    """The directory with core.yaml: the top, or the archive's only directory."""
    roots = [path.parent for path in [unpacked / "core.yaml", *unpacked.glob("*/core.yaml")]]
    found = [root for root in roots if (root / "core.yaml").is_file()]
    if len(found) != 1:
        raise FetchError("the archive holds no core.yaml at its top or in its one directory")
    shutil.rmtree(unpacked / "__MACOSX", ignore_errors=True)
    return found[0]


def _below(inner: Path, files: dict[str, str]) -> dict[str, str]:
    """The files inside `inner`, with paths relative to it."""
    prefix = "" if inner == Path() else f"{inner.as_posix()}/"
    return {n.removeprefix(prefix): v for n, v in files.items() if n.startswith(prefix)}


def _record(root: Path, url: str, sha256: str, files: dict[str, str]) -> None:
    content = {"url": url, "archive_sha256": sha256, "files": files}
    write_durably(root / RECORD, json.dumps(content, indent=1, sort_keys=True).encode())


# --- command line --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    try:
        found = fetch(asked.into, asked.url, asked.sha256, _shown if sys.stderr.isatty() else None)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{asked.into}\narchive sha256 {found}")
    if asked.sha256 is None:
        print("not compared: no --sha256 was given; give this one to get the same bundle again")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="traind fetch", description=(__doc__ or "").strip())
    parser.add_argument("what", choices=["core"], help="what to fetch")
    root = os.environ.get("TRAIND_DATA_DIR") or platformdirs.user_data_dir("traind")
    default = DataDir(Path(root).expanduser()).core_bundle
    parser.add_argument("--into", type=Path, default=default, help=f"directory ({default})")
    parser.add_argument("--url", default=CORE_URL, help=f"the archive ({CORE_URL})")
    parser.add_argument("--sha256", help="refuse any other archive")
    return parser


def _shown(done: int, total: int | None) -> None:
    whole = f" of {units.num_bytes(total)}" if total else ""
    print(f"\r{units.num_bytes(done)}{whole}  ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
