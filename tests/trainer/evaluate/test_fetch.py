"""Fetching over a loopback server: what arrives, what is refused, what is left behind."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.trainer.evaluate import fixture
from trainer.evaluate import core_bundle, fetch

BUNDLE = fixture.ROOT / "eval_bundle"


class Handler(BaseHTTPRequestHandler):
    def __init__(self, pages: dict[str, tuple[bytes, int]], *rest) -> None:
        self.pages = pages
        super().__init__(*rest)

    def do_GET(self) -> None:
        body, said = self.pages.get(self.path, (b"", -1))
        if said < 0:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(said))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        pass


class Site:
    def __init__(self) -> None:
        self.pages: dict[str, tuple[bytes, int]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self.pages))
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def put(self, body: bytes, said: int | None = None) -> str:
        self.pages["/bundle.zip"] = (body, len(body) if said is None else said)
        return f"http://127.0.0.1:{self.server.server_address[1]}/bundle.zip"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def bundle_zip(prefix: str = "eval_bundle/", extra: dict[str, bytes] | None = None) -> bytes:
    """The fixture's bundle as nanochat's archive lays it out."""
    files = {
        prefix + p.relative_to(BUNDLE).as_posix(): p.read_bytes()
        for p in sorted(BUNDLE.rglob("*"))
        if p.is_file()
    }
    return zipped(files | (extra or {}))


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("prefix", ["", "eval_bundle/"])
def test_a_bundle_arrives_verified_and_is_the_same(site, tmp_path, prefix):
    body = bundle_zip(prefix)
    sha256, seen = hashlib.sha256(body).hexdigest(), []
    into = tmp_path / "core"
    found = fetch.fetch(into, site.put(body), sha256, lambda *p: seen.append(p))
    assert found == sha256
    assert seen[-1] == (len(body), len(body))
    assert core_bundle.load_bundle(into) == fixture.bundle()
    assert [p.name for p in tmp_path.iterdir()] == ["core"], "no scratch is left"


def test_a_file_changed_after_the_fetch_is_noticed(site, tmp_path):
    fetch.fetch(tmp_path / "core", site.put(bundle_zip()))
    with (tmp_path / "core" / "eval_data" / "mc.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(core_bundle.BundleError, match="not the file that was fetched"):
        core_bundle.load_bundle(tmp_path / "core")


def symlink_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("core.yaml")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def twice_zip() -> bytes:
    body = zipped({"core.yamA": b"1", "core.yamB": b"2"})
    return body.replace(b"core.yamB", b"core.yamA")


def giant_directory_zip() -> bytes:
    body = bytearray(bundle_zip())
    at = body.rfind(b"PK\x05\x06")
    struct.pack_into("<I", body, at + 12, 1 << 30)
    return bytes(body)


HOSTILE = {
    "traversal": (zipped({"../evil": b"x"}), "leads elsewhere"),
    "absolute": (zipped({"/evil": b"x"}), "leads elsewhere"),
    "backslash": (zipped({"..\\evil": b"x"}), "leads elsewhere"),
    "symlink": (symlink_zip(), "no plain file"),
    "twice": (twice_zip(), "twice"),
    "no bundle": (zipped({"readme": b"x"}), "no core.yaml"),
    "not a zip": (b"hello" * 100, "not a zip file"),
    "cut": (bundle_zip()[:-40], "not a zip file"),
    "giant list": (giant_directory_zip(), "list of files is too long"),
    "useless": (zipped({"core.yaml": b"icl_tasks: 3"}), "no usable bundle"),
    "damaged": (bundle_zip().replace(b"PK\x01\x02", b"PK\x01\x03", 1), "cannot be unpacked"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_f52_a_hostile_archive_is_refused_and_nothing_is_left(site, tmp_path, name):
    body, why = HOSTILE[name]
    with pytest.raises(fetch.FetchError, match=why):
        fetch.fetch(tmp_path / "core", site.put(body))
    assert list(tmp_path.iterdir()) == []


def test_f53_a_bomb_stops_at_the_cap_whatever_it_says_about_itself(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_UNPACKED_BYTES", 1 << 20)
    bomb = bundle_zip(extra={"eval_bundle/big": bytes(8 << 20)})
    assert len(bomb) < 1 << 18
    with pytest.raises(fetch.FetchError, match="unpacks to over"):
        fetch.fetch(tmp_path / "core", site.put(bomb))
    assert list(tmp_path.iterdir()) == []


def test_a_download_over_the_cap_is_broken_off(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(fetch.FetchError, match="larger than 1,000 bytes"):
        fetch.fetch(tmp_path / "core", site.put(bundle_zip()))
    assert list(tmp_path.iterdir()) == []


def test_another_checksum_a_short_answer_and_a_missing_page_are_refused(site, tmp_path):
    body = bundle_zip()
    with pytest.raises(fetch.FetchError, match="sha256 is"):
        fetch.fetch(tmp_path / "core", site.put(body), "0" * 64)
    with pytest.raises(fetch.FetchError, match="cannot download"):
        fetch.fetch(tmp_path / "core", site.put(body[:1000], said=len(body)))
    with pytest.raises(fetch.FetchError, match="404"):
        fetch.fetch(tmp_path / "core", site.put(body) + "x")
    with pytest.raises(fetch.FetchError, match="cannot download"):
        fetch.fetch(tmp_path / "core", "file:///etc/passwd")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced(site, tmp_path):
    (tmp_path / "core").mkdir()
    with pytest.raises(fetch.FetchError, match="there already"):
        fetch.fetch(tmp_path / "core", site.put(bundle_zip()))


def test_the_command_says_where_and_which(site, tmp_path, capsys):
    into = tmp_path / "core"
    archive = bundle_zip()
    arguments = ["core", "--into", str(into), "--url", site.put(archive)]
    assert fetch.main(arguments) == 0
    said = capsys.readouterr().out
    assert str(into) in said
    assert hashlib.sha256(archive).hexdigest() in said
    assert fetch.main(arguments) == 1
    assert "there already" in capsys.readouterr().err


def test_the_default_is_nanochats_public_bundle():
    assert fetch.CORE_URL.startswith("https://")
    assert Path(fetch.CORE_URL).name == "eval_bundle.zip"
