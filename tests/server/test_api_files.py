"""Files of checkpoints and of the dashboard: only by names there are, in parts, with ETags."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest

from server.dashboard import files
from server.database import tables
from server.metrics import parquet
from server.queries import run_views
from tests.server.asgi import Asgi

NAME = "step-000000010-a0001"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def saved(asgi: Asgi) -> Asgi:
    """A run with three checkpoints; the first has real files."""
    asgi.create(start=False)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        home = asgi.settings.paths.run(run.id).checkpoints / NAME
        home.mkdir(parents=True)
        (home / "model.safetensors").write_bytes(CONTENT)
        (home / "secret.txt").write_text("not listed")
        (home.parent / "outside.txt").write_text("outside")
        (home / "link.json").symlink_to(home.parent / "outside.txt")
        entry = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
        listed = ["model.safetensors", "link.json", "gone.json", "../outside.txt"]
        manifest = json.dumps({"files": dict.fromkeys(listed, entry)}).encode()
        (home / "manifest.json").write_bytes(manifest)
        for step in (10, 20, 30):
            session.add(
                tables.Checkpoint(
                    run_id=run.id, name=f"step-{step:09d}-a0001", step=step, bytes=1, why="cadence",
                    manifest_sha256=hashlib.sha256(manifest).hexdigest(), created_at=1.0,
                )
            )  # fmt: skip
    return asgi


def url(name: str = "model.safetensors", checkpoint: str = NAME) -> str:
    return f"/v1/runs/demo/checkpoints/{checkpoint}/files/{name}"


def test_a_file_comes_whole_with_its_sha256_as_etag(saved: Asgi) -> None:
    answer = saved.get(url())
    assert answer.content == CONTENT
    assert answer.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert answer.headers["content-disposition"].endswith(f'demo-{NAME}-model.safetensors"')
    again = saved.get(url(), headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = saved.request("HEAD", url())
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", CONTENT[:1]),
        ("bytes=5-9", CONTENT[5:10]),
        ("bytes=-7", CONTENT[-7:]),
        ("bytes=10000-", CONTENT[10_000:]),
        ("bytes=0-999999999", CONTENT),
        ("bytes=-999999999", CONTENT),
    ],
)
def test_a_range_is_a_part(saved: Asgi, asked: str, expected: bytes) -> None:
    answer = saved.get(url(), headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, expected)
    span, _, size = answer.headers["content-range"].removeprefix("bytes ").partition("/")
    first, last = map(int, span.split("-"))
    assert (CONTENT[first : last + 1], int(size)) == (expected, len(CONTENT))


@pytest.mark.parametrize("asked", ["bytes=20000-", "bytes=10240-10300", "bytes=9-5", "bytes=-0"])
def test_a_range_beyond_the_file_is_416(saved: Asgi, asked: str) -> None:
    answer = saved.get(url(), headers={"range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("asked", ["bytes=x-y", "lines=1-2", "bytes=1-2,4-5", "bytes=-", "x"])
def test_a_range_that_is_not_understood_is_ignored(saved: Asgi, asked: str) -> None:
    answer = saved.get(url(), headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_download_is_resumed_only_of_the_same_file(saved: Asgi) -> None:
    etag = saved.get(url()).headers["etag"]
    same = saved.get(url(), headers={"range": "bytes=5-", "if-range": etag})
    other = saved.get(url(), headers={"range": "bytes=5-", "if-range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)


def test_f49_only_listed_regular_files_are_served(saved: Asgi) -> None:
    """Not listed, a link out of the directory, listed but gone, and a path in the list."""
    for name in ("secret.txt", "link.json", "gone.json", "..%2Foutside.txt", "outside.txt"):
        assert saved.get(url(name)).status_code == 404, name
    assert saved.get(url("manifest.json")).status_code == 200


def test_f49_a_changed_manifest_lists_nothing(saved: Asgi) -> None:
    with saved.db.read() as session:
        run_id = run_views.get_run(session, "demo").id
    manifest = saved.settings.paths.run(run_id).checkpoints / NAME / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"link.json", b"secret.tx"))
    assert saved.get(url()).status_code == 404


def test_f49_thousands_of_odd_names_open_nothing_outside(
    saved: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = ["..", ".", "/", "\\", "%2e", "%2f", "%5c", "%00", "%252e", "etc", "passwd", "~", "a",
              "model.safetensors", NAME, "run_", "%c0%ae", "%ff", "C:", " ", "*"]  # fmt: skip
    chosen = random.Random(49)
    opened: list[str] = []
    real = os.open

    def noting(path, *rest, **named):  # type: ignore[no-untyped-def]
        opened.append(os.fsdecode(path) if not isinstance(path, int) else str(path))
        return real(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", noting)
    for _ in range(250):
        odd = "".join(chosen.choices(pieces, k=chosen.randint(1, 6))).encode()
        for path in (b"/v1/runs/%s", b"/static/%s", b"/v1/runs/demo/checkpoints/%s/files/x",
                     b"/v1/runs/demo/checkpoints/" + NAME.encode() + b"/files/%s"):  # fmt: skip
            target = httpx.URL("http://127.0.0.1:8321").copy_with(raw_path=path % odd)
            assert saved.request("GET", str(target)).status_code < 500
    home = str(saved.settings.paths.root)
    assert [path for path in opened if not path.startswith(home)] == []


# --- pin and delete ------------------------------------------------------------------------------


def test_the_newest_and_the_pinned_ones_stay(saved: Asgi) -> None:
    base = "/v1/runs/demo/checkpoints"
    assert saved.request("DELETE", f"{base}/step-000000030-a0001").status_code == 409
    assert saved.request("PATCH", f"{base}/{NAME}", json={"pinned": True}).json()["pinned"]
    refused = saved.request("DELETE", f"{base}/{NAME}")
    assert refused.status_code == 409
    assert "pinned" in refused.json()["detail"]
    saved.request("PATCH", f"{base}/{NAME}", json={"pinned": False})
    with saved.db.read() as session:
        home = saved.settings.paths.run(run_views.get_run(session, "demo").id).checkpoints
    assert saved.request("DELETE", f"{base}/{NAME}").status_code == 204
    assert not (home / NAME).exists()
    assert saved.request("DELETE", f"{base}/{NAME}").status_code == 404
    assert [c["step"] for c in saved.get(base).json()["data"]] == [30, 20]


# --- the dashboard's files -----------------------------------------------------------------------


def test_every_file_of_the_dashboard_has_its_type_and_a_strict_policy(asgi: Asgi) -> None:
    types = {
        "js": "text/javascript",
        "css": "text/css",
        "svg": "image/svg+xml",
        "html": "text/html",
    }
    for name in files.names():
        answer = asgi.get(f"/static/{name}")
        assert answer.status_code == 200, name
        kind = types.get(name.rpartition(".")[2])
        assert kind is None or answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        etag = {"if-none-match": answer.headers["etag"]}
        assert asgi.get(f"/static/{name}", headers=etag).status_code == 304
    assert asgi.get("/").text.startswith("<!doctype html>")
    assert asgi.get("/docs").text.startswith("<!doctype html>")


# --- parquet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1000])
def test_parquet_reads_back_in_pyarrow(rows: int) -> None:
    chosen = random.Random(rows)
    steps = [chosen.randint(-(2**63), 2**63 - 1) for _ in range(rows)]
    means = [None if chosen.random() < 0.3 else chosen.uniform(-1e300, 1e300) for _ in range(rows)]
    keys = [None if chosen.random() < 0.1 else "é🏃"[: chosen.randint(0, 2)] for _ in range(rows)]
    columns = [
        parquet.ParquetColumn("key", "string", keys),
        parquet.ParquetColumn("step", "int64", steps),
        parquet.ParquetColumn("mean", "double", means),
    ]
    table = pyarrow.parquet.read_table(io.BytesIO(parquet.write(columns)))
    assert table.to_pydict() == {"key": keys, "step": steps, "mean": means}


def test_metrics_come_as_csv_and_parquet_by_accept(asgi: Asgi, tmp_path: Path) -> None:
    asgi.create(start=False)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        session.add(
            tables.Evaluation(
                run_id=run.id, kind="bpb", step=7, value=1.5, identity="i", settings={}, result={},
                seconds=1.0, unix_seconds=2.0,
            )
        )  # fmt: skip
    as_json = asgi.get("/v1/runs/demo/metrics?keys=val_bpb,core").json()
    assert as_json["series"] == [
        {"key": "val_bpb", "identity": "i", "points": [[7, 2.0, 1.5, 1.5, 1.5]]},
        {"key": "core", "identity": None, "points": []},
    ]
    csv = asgi.get("/v1/runs/demo/metrics?keys=val_bpb", headers={"accept": "text/csv"})
    assert csv.text == "key,step,unix_seconds,mean,min,max,identity\nval_bpb,7,2.0,1.5,1.5,1.5,i\n"
    kind = {"accept": "application/vnd.apache.parquet"}
    packed = asgi.get("/v1/runs/demo/metrics?keys=val_bpb", headers=kind).content
    [row] = pyarrow.parquet.read_table(io.BytesIO(packed)).to_pylist()
    assert list(row.values()) == ["val_bpb", 7, 2.0, 1.5, 1.5, 1.5, "i"]
    assert asgi.get("/v1/runs/demo/metrics?keys=nope").status_code == 422
    assert asgi.get("/v1/runs/demo/metrics", headers={"accept": "image/png"}).status_code == 406


def test_values_of_two_identities_are_never_one_curve(asgi: Asgi) -> None:
    asgi.create(start=False)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        session.add_all(
            tables.Evaluation(
                run_id=run.id, kind="bpb", step=step, value=value, identity=identity, settings={},
                result={}, seconds=1.0, unix_seconds=2.0,
            )
            for step, value, identity in [(5, 1.5, "i"), (5, 1.7, "j"), (10, 1.4, "i")]
        )  # fmt: skip
    series = asgi.get("/v1/runs/demo/metrics?keys=val_bpb").json()["series"]
    found = {s["identity"]: [(p[0], p[2]) for p in s["points"]] for s in series}
    assert found == {"i": [(5, 1.5), (10, 1.4)], "j": [(5, 1.7)]}
    csv = asgi.get("/v1/runs/demo/metrics?keys=val_bpb", headers={"accept": "text/csv"}).text
    assert [line.split(",")[1::5] for line in csv.splitlines()[1:]] == [
        ["5", "i"], ["10", "i"], ["5", "j"],
    ]  # fmt: skip


# --- light over a tunnel -------------------------------------------------------------------------


def test_the_files_of_the_page_are_sent_compressed_and_kept(asgi: Asgi) -> None:
    gzip = {"accept-encoding": "gzip"}
    for name in ("page.js", "page.css", "early.js"):
        plain = asgi.get(f"/static/{name}", headers={"accept-encoding": "gzip;q=0"})
        small = asgi.get(f"/static/{name}", headers=gzip)
        assert small.headers["content-encoding"] == "gzip"
        assert small.headers["vary"] == "Accept-Encoding"
        assert int(small.headers["content-length"]) < len(plain.content) / 1.5
        assert small.content == plain.content  # httpx has unpacked it
        assert small.headers["etag"] != plain.headers["etag"]
        again = asgi.get(
            f"/static/{name}", headers={**gzip, "if-none-match": small.headers["etag"]}
        )
        assert again.status_code == 304


def test_answers_are_compressed_but_neither_streams_nor_files(saved: Asgi) -> None:
    gzip = {"accept-encoding": "gzip"}
    assert saved.get("/v1/runs/demo", headers=gzip).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in saved.get("/healthz", headers=gzip).headers
    answer = saved.get(url(), headers=gzip)
    assert "content-encoding" not in answer.headers
    assert answer.content == CONTENT
