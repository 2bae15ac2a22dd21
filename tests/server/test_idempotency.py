"""F43: a POST that is repeated happens once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from server.database import tables
from server.guard import idempotency
from server.guard.idempotency import Key, StoredAnswer
from tests.server.asgi import Asgi


def keyed(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


def names(asgi: Asgi) -> list[str]:
    return [run["name"] for run in asgi.get("/v1/runs").json()["data"]]


def test_f43_the_same_request_gets_the_same_answer(asgi: Asgi) -> None:
    first = asgi.post("/v1/runs", {"name": "demo", "title": "t"}, headers=keyed("k"))
    again = asgi.request(
        "POST",
        "/v1/runs",
        content=b'{ "title": "t",  "name": "demo" }',
        headers={**keyed("k"), "content-type": "application/json"},
    )
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"
    assert names(asgi) == ["demo"]


def test_f43_another_body_or_path_is_422(asgi: Asgi) -> None:
    asgi.post("/v1/runs", {"name": "demo"}, headers=keyed("k"))
    other = asgi.post("/v1/runs", {"name": "other"}, headers=keyed("k"))
    assert other.status_code == 422
    assert other.json()["type"] == "urn:traind:problem:idempotency-mismatch"
    assert asgi.post("/v1/runs/demo/pause", headers=keyed("k")).status_code == 422
    assert names(asgi) == ["demo"]


def test_f43_it_survives_a_restart(tmp_path: Path) -> None:
    first = Asgi(tmp_path)
    made = first.post("/v1/runs", {"name": "demo"}, headers=keyed("k")).json()
    first.close()
    second = Asgi(tmp_path)
    again = second.post("/v1/runs", {"name": "demo"}, headers=keyed("k"))
    assert again.json()["id"] == made["id"]
    second.close()


def test_a_refusal_is_not_kept(asgi: Asgi) -> None:
    assert asgi.post("/v1/runs/demo/pause", headers=keyed("k")).status_code == 404
    asgi.create()
    assert asgi.post("/v1/runs/demo/pause", headers=keyed("k")).status_code == 202


def test_add_steps_adds_once_for_a_key_and_again_for_another(asgi: Asgi) -> None:
    asgi.create(start=False)
    for key in ("a", "a", "b"):
        answer = asgi.post("/v1/runs/demo/extend", {"add_steps": 100}, headers=keyed(key))
        assert answer.status_code == 202
    assert asgi.get("/v1/runs/demo").json()["end_step"] == 400


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "\x7f"])
def test_a_key_that_is_none_is_422(asgi: Asgi, key: str) -> None:
    assert asgi.post("/v1/runs", {"name": "demo"}, headers=keyed(key)).status_code == 422


def test_every_post_takes_a_key(asgi: Asgi) -> None:
    """From the route list: a new POST is covered by being there. A session's answer is a secret."""
    posts = [
        r
        for r in asgi.app.state.routes
        if "POST" in r.methods and r.path != "/v1/session" and r.include_in_schema
    ]  # what is not offered has no effect to repeat
    assert len(posts) >= 12
    for route in posts:
        path = route.path.replace("{run}", "demo")
        answer = asgi.post(path, {}, headers=keyed("not a key"))
        assert answer.status_code == 422, path
        assert "Idempotency-Key" in answer.json()["detail"], path


def test_f43_at_once_from_many_threads_it_happens_once(asgi: Asgi) -> None:
    answers: list[Any] = []

    def ask() -> None:
        answers.append(asgi.post("/v1/runs", {"name": "demo"}, headers=keyed("k")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["id"] for a in answers}) == 1


def test_a_failed_effect_keeps_no_answer(asgi: Asgi) -> None:
    """Both are in one transaction: neither without the other."""

    def fail() -> None:
        with asgi.db.write() as session:
            idempotency.store(session, Key("k", "f"), StoredAnswer(201, "{}"), 1.0)
            session.flush()
            raise RuntimeError("the effect failed")

    with pytest.raises(RuntimeError):
        fail()
    with asgi.db.read() as session:
        assert session.get(tables.IdempotencyKey, "k") is None


def test_keys_go_after_a_day(asgi: Asgi) -> None:
    with asgi.db.write() as session:
        idempotency.store(session, Key("old", "f"), StoredAnswer(200, "{}"), 1_000.0)
    later = 1_000.0 + idempotency.KEEP_SECONDS + 1
    with asgi.db.write() as session:
        assert idempotency.stored(session, Key("old", "other"), later) is None
        idempotency.store(session, Key("new", "f"), StoredAnswer(200, "{}"), later)
    with asgi.db.read() as session:
        assert session.get(tables.IdempotencyKey, "old") is None
