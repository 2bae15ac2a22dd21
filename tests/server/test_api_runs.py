"""Runs over HTTP: what each verb answers, and that nothing is half done."""

from __future__ import annotations

from typing import Any

import pytest

from server.domain import states
from server.domain.states import State
from server.metrics import counters
from server.queries import run_views
from tests.server import rows
from tests.server.asgi import Asgi
from trainer.contract.reasons import Reason
from trainer.contract.rundir import LOG


def test_create_needs_only_a_name(asgi: Asgi) -> None:
    answer = asgi.post("/v1/runs", {"name": "demo"})
    assert answer.status_code == 201
    run = answer.json()
    assert answer.headers["location"] == f"/v1/runs/{run['id']}"
    assert run["state"] == "queued"
    assert asgi.get(answer.headers["location"]).json() == run
    assert asgi.get("/v1/runs/demo").json()["id"] == run["id"]


def test_a_run_created_without_start_waits_for_it(asgi: Asgi) -> None:
    made = asgi.create(start=False)
    assert (made["state"], made["reason_message"]) == ("created", "Not started yet.")
    assert asgi.post("/v1/runs/demo/start").status_code == 202
    assert asgi.post("/v1/runs/demo/start").status_code == 200


@pytest.mark.parametrize(
    ("body", "pointer", "word"),
    [
        ({"name": "x", "modle": {}}, "/modle", "did you mean model"),
        ({"name": "x", "model": {"dept": 4}}, "/model/dept", "did you mean depth"),
        ({"name": "x", "model": {"depth": 0}}, "/model/depth", "greater than or equal to 1"),
        (
            {"name": "x", "batch": {"tokens": "lots"}},
            "/batch/tokens",
            "a whole number or auto, not text",
        ),
        ({"name": "x y"}, "/name", "letters, digits"),
        ({"name": "run_x"}, "/name", "run_"),
        ({}, "/name", "required"),
        ({"name": "x", "preset": "nope"}, "/preset", "known are demo"),
        ({"name": "x", "horizon": {"steps": 1, "tokens": 1}}, "/horizon", "exactly one"),
    ],
)
def test_a_bad_spec_names_the_field_and_what_would_be_right(
    asgi: Asgi, body: dict[str, object], pointer: str, word: str
) -> None:
    answer = asgi.post("/v1/runs", body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    [said] = [e["detail"] for e in problem["errors"] if e["pointer"] == pointer]
    assert word in said
    assert asgi.get("/v1/runs").json()["data"] == []


def test_a_batch_that_does_not_divide_says_what_would(asgi: Asgi) -> None:
    batch = {"tokens": 5120, "device_batch_size": 8}
    body = {"name": "x", "model": {"sequence_len": 256}, "batch": batch}
    answer = asgi.post("/v1/runs", body)
    assert answer.status_code == 422
    assert "4,096 would be" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "pointer", "words"),
    [
        ("/v1/runs/demo/extend", {"to": 400}, "/to", "known here are add_steps,"),
        ("/v1/runs/demo/extend", {"to_stepp": 400}, "/to_stepp", "did you mean to_step?"),
        ("/v1/runs/demo/resume", {"overide": {}}, "/overide", "did you mean overrides?"),
        ("/v1/runs/demo/samples", {"promt": "x"}, "/promt", "did you mean prompt"),
    ],
)
def test_an_unknown_key_of_any_request_is_answered_with_the_known_ones(
    asgi: Asgi, path: str, body: dict[str, object], pointer: str, words: str
) -> None:
    asgi.create()
    answer = asgi.post(path, body)
    assert answer.status_code == 422
    [said] = [e["detail"] for e in answer.json()["errors"] if e["pointer"] == pointer]
    assert words in said


def test_a_name_in_use_is_a_conflict(asgi: Asgi) -> None:
    asgi.create()
    answer = asgi.post("/v1/runs", {"name": "demo"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (409, "/name")


def test_lists_page_by_cursor(asgi: Asgi) -> None:
    for index in range(5):
        asgi.create(f"r{index}", start=False)
    seen, after = [], None
    while True:
        page = asgi.get("/v1/runs", params={"limit": 2, **({"after": after} if after else {})})
        seen += [run["name"] for run in page.json()["data"]]
        after = page.json()["next"]
        if not page.json()["has_more"]:
            break
    assert seen == ["r4", "r3", "r2", "r1", "r0"]
    assert asgi.get("/v1/runs?state=queued").json()["data"] == []
    assert asgi.get("/v1/runs?after=nonsense").status_code == 422
    assert asgi.get("/v1/runs?limit=0").status_code == 422


def test_pause_resume_cancel_answer_202_then_200(asgi: Asgi) -> None:
    asgi.create()
    for verb in ("pause", "resume", "cancel"):
        first = asgi.post(f"/v1/runs/demo/{verb}")
        assert first.status_code == 202, first.text
        again = asgi.post(f"/v1/runs/demo/{verb}")
        assert again.status_code == 200
        assert again.json()["desired_state"] == first.json()["desired_state"]


def test_an_illegal_verb_says_the_state_and_what_is_legal(asgi: Asgi) -> None:
    asgi.create(start=False)
    answer = asgi.post("/v1/runs/demo/pause")
    assert answer.status_code == 409
    problem = answer.json()
    assert problem["state"] == "created"
    assert problem["legal"] == ["cancel", "delete", "extend", "start"]
    assert problem["type"] == "urn:traind:problem:illegal-move"


def test_extend_previews_then_does_and_a_repeat_changes_nothing(asgi: Asgi) -> None:
    asgi.create(start=False)
    ask = {"to_step": 300}
    dry = asgi.post("/v1/runs/demo/extend?dry_run=true", ask)
    assert dry.status_code == 200
    assert dry.json()["run"]["end_step"] == 200
    done = asgi.post("/v1/runs/demo/extend", ask)
    assert done.status_code == 202
    assert done.json()["run"]["end_step"] == 300
    assert done.json()["joint"] == dry.json()["joint"]
    again = asgi.post("/v1/runs/demo/extend", ask)
    assert (again.status_code, again.json()["plan"]) == (200, None)
    planned = asgi.post("/v1/plan", {"run": "demo", "extend": {"to_step": 400}})
    assert planned.json()["extend"]["start_step"] == 300


@pytest.mark.parametrize(
    ("ask", "pointer"),
    [
        ({"to_step": 10}, "/to_step"),
        ({}, ""),
        ({"to_step": 300, "add_steps": 1}, ""),
        ({"to_step": 300, "schedule": {"mode": "nope"}}, "/schedule/mode"),
    ],
)
def test_a_bad_extend_points_at_its_field(asgi: Asgi, ask: dict[str, object], pointer: str) -> None:
    asgi.create(start=False)
    answer = asgi.post("/v1/runs/demo/extend", ask)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    planned = asgi.post("/v1/plan", {"run": "demo", "extend": ask})
    assert planned.json()["errors"][0]["pointer"] == f"/extend{pointer}"


def test_patch_changes_cadences_and_nothing_else(asgi: Asgi) -> None:
    asgi.create(start=False, checkpoint={"every_steps": 50})
    body = {"title": "T", "checkpoint": {"keep_last": 5}}
    run = asgi.request("PATCH", "/v1/runs/demo", json=body).json()
    assert (run["title"], run["spec"]["checkpoint"]["keep_last"]) == ("T", 5)
    assert run["spec"]["checkpoint"]["every_steps"] == 50
    assert asgi.request("PATCH", "/v1/runs/demo", json={"model": {}}).status_code == 422
    bad = asgi.request("PATCH", "/v1/runs/demo", json={"checkpoint": {"keep_last": 1}})
    assert bad.json()["errors"][0]["pointer"] == "/checkpoint/keep_last"


def test_a_rename_keeps_the_id_and_what_is_kept_under_the_name(asgi: Asgi) -> None:
    run = asgi.create("first")
    asgi.create("second")
    with asgi.db.write() as session:
        tally = counters.Tally()
        tally.add(counters.STEPS, "first", 60)
        tally.observe(counters.STEP_SECONDS, "first", 2.0)
        tally.add(counters.STEPS, "gone", 7)  # of a deleted run that had the new name
        tally.write(session)
    taken = asgi.request("PATCH", "/v1/runs/first", json={"name": "second"})
    assert (taken.status_code, taken.json()["errors"][0]["pointer"]) == (409, "/name")
    bad = asgi.request("PATCH", "/v1/runs/first", json={"name": "run_x"})
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/name")
    follower = asgi.create("follower", data={"tokenizer": {"run": "first"}})
    renamed = asgi.request("PATCH", "/v1/runs/first", json={"name": "gone"}).json()
    assert (renamed["name"], renamed["spec"]["name"], renamed["id"]) == ("gone", "gone", run["id"])
    assert asgi.get(f"/v1/runs/{run['id']}").json()["name"] == "gone"
    old = asgi.get("/v1/runs/first")
    assert (old.status_code, old.json()["hint"]) == (404, "The run that had this name is now gone.")
    assert asgi.get("/v1/runs/gone/events").json()["data"][-1]["data"] == {
        "before": "first", "after": "gone",
    }  # fmt: skip
    shown = asgi.get("/metrics").text
    assert 'traind_steps_processed_total{run="gone"} 67' in shown, "a counter never goes back"
    assert 'traind_step_duration_seconds_count{run="gone"} 1' in shown
    assert 'run="first"' not in shown
    spec = asgi.get(f"/v1/runs/{follower['id']}").json()["spec"]
    assert spec["data"]["tokenizer"]["run"] == run["id"], "the old name may become another run's"
    assert asgi.create("first")["id"] != run["id"]


@pytest.mark.parametrize(
    ("header", "words"),
    [("page", "on the page"), ("cli", "on the command line"), ("?", "through the API")],
)
def test_a_pause_and_a_cancel_say_which_way_they_were_asked(
    asgi: Asgi, header: str, words: str
) -> None:
    asgi.create("demo")
    headers = {"Traind-Client": header}
    run = asgi.post("/v1/runs/demo/pause", headers=headers).json()
    assert run["reason_message"] == f"Pausing, asked {words}: a checkpoint is saved first."
    with asgi.db.write() as session:
        states.move(session, run_views.get_run(session, "demo"), State.paused, Reason.requested)
    run = asgi.get("/v1/runs/demo").json()
    assert run["reason_message"] == f"Paused by you {words}."
    run = asgi.post("/v1/runs/demo/cancel", headers=headers).json()
    assert run["reason_message"] == f"Cancelled by you {words}."
    asgi.post("/v1/runs/demo/resume", headers=headers)
    with asgi.db.write() as session:
        row = run_views.get_run(session, "demo")
        states.move(session, row, State.pausing, Reason.host_restarted)
        states.move(session, row, State.paused, Reason.requested)
    assert asgi.get("/v1/runs/demo").json()["reason_message"] == "Paused on request."


def test_a_resume_takes_what_the_advice_of_its_failure_names(asgi: Asgi) -> None:
    asgi.create("demo", recovery={"on_non_finite": "stop", "on_crash": "stop"})
    asgi.move("demo", "failed")
    body = {"recovery": {"on_non_finite": "rewind"}}
    resumed = asgi.post("/v1/runs/demo/resume", body).json()
    assert resumed["spec"]["recovery"]["on_non_finite"] == "rewind"
    assert resumed["spec"]["recovery"]["on_crash"] == "stop"
    asgi.move("demo", "failed")
    bad = asgi.post(
        "/v1/runs/demo/resume", {"recovery": {"on_non_finite": "stop", "on_crash": "stop"}}
    )
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/recovery/on_crash")


def _fails_of(asgi: Asgi, name: str, reason: Reason, **columns: Any) -> dict[str, Any]:
    """The failed run, as the API shows it."""
    asgi.move(name, "failed")
    with asgi.db.write() as session:
        run = run_views.get_run(session, name)
        run.reason = reason
        for column, value in columns.items():
            setattr(run, column, value)
    return asgi.get(f"/v1/runs/{name}").json()


@pytest.mark.parametrize(
    ("reason", "columns", "words", "label", "request_"),
    [
        (
            Reason.out_of_memory, {"overrides": {"device_batch_size": 4}},
            "lower overrides.device_batch_size", "Resume with 2 rows per pass (now 4)",
            {"overrides": {"device_batch_size": 2}},
        ),
        (
            Reason.out_of_memory, {"overrides": {"device_batch_size": 1}},
            "One row per pass does not fit either", "Start again", {},
        ),
        (
            Reason.compile_failed, {}, "overrides.compile", "Resume without compiling",
            {"overrides": {"compile": False}},
        ),
        (
            Reason.non_finite_loss, {}, "recovery.on_non_finite: rewind",
            "Resume and rewind past the bad batch", {"recovery": {"on_non_finite": "rewind"}},
        ),
        (
            Reason.non_finite_loss, {"rewinds": 3}, "used all its rewinds (3)",
            "Allow one more rewind (so far 3) and resume",
            {"recovery": {"on_non_finite": "rewind", "max_rewinds": 4}},
        ),
        (Reason.non_finite_loss, {"rewinds": 100}, "in a new run.", "Start again", {}),
        (Reason.data_unusable, {}, "Fix the problem", "Start again", {}),
    ],
)  # fmt: skip
def test_the_remedy_of_a_failure_follows_its_advice_and_is_accepted(
    asgi: Asgi, reason: Reason, columns: dict[str, Any], words: str, label: str,
    request_: dict[str, Any],
) -> None:  # fmt: skip
    created = asgi.create("demo")
    assert created["remedy"] is None
    failed = _fails_of(asgi, "demo", reason, **columns)
    assert words in failed["advice"]
    assert failed["remedy"] == {"label": label, "request": request_}
    resumed = asgi.post("/v1/runs/demo/resume", failed["remedy"]["request"])
    assert (resumed.status_code, resumed.json()["remedy"]) == (202, None)
    for part, changed in request_.items():
        now = resumed.json()["spec"]["recovery"] if part == "recovery" else resumed.json()[part]
        assert now | changed == now


def test_a_job_hands_out_its_log_and_the_files_of_its_result(asgi: Asgi) -> None:
    asgi.create("demo")
    directory = asgi.settings.paths.job("job_x")
    (directory / "export" / "tokenizer").mkdir(parents=True)
    (directory / "export" / "tokenizer" / "tok.pkl").write_bytes(b"pickled")
    (directory / "secret").write_bytes(b"no")
    (directory / LOG).write_bytes(b"one\ntwo\x1b[31m\n")
    result = {"path": str(directory / "export"), "files": ["tokenizer/tok.pkl"], "step": 9}
    with asgi.db.write() as session:
        session.add(
            rows.job(
                id="job_x", kind="export", where="cpu", state="completed", params={}, token="t",
                result=result, created_at=1.0,
            )
        )  # fmt: skip
    assert asgi.get("/v1/jobs/job_x/logs?tail=1").text == "two\\x1b[31m\n"
    whole = asgi.get("/v1/jobs/job_x/files/tokenizer/tok.pkl")
    assert whole.content == b"pickled"
    assert 'filename="tok.pkl"' in whole.headers["content-disposition"]
    part = asgi.get("/v1/jobs/job_x/files/tokenizer/tok.pkl", headers={"Range": "bytes=3-"})
    assert (part.status_code, part.content) == (206, b"kled")
    known = {"If-None-Match": whole.headers["etag"]}
    assert asgi.get("/v1/jobs/job_x/files/tokenizer/tok.pkl", headers=known).status_code == 304
    for other in ("secret", "../secret", "tokenizer", "%2e%2e/secret"):
        assert asgi.get(f"/v1/jobs/job_x/files/{other}").status_code == 404, other


def test_delete_takes_the_directory_with_it(asgi: Asgi) -> None:
    run = asgi.create(start=False)
    home = asgi.settings.paths.run(run["id"]).root
    home.mkdir(parents=True)
    (home / "spec.json").write_text("{}")
    assert asgi.request("DELETE", "/v1/runs/demo").status_code == 204
    assert not home.exists()
    assert asgi.get("/v1/runs/demo").status_code == 404


def test_plan_reckons_the_reference_run(asgi: Asgi) -> None:
    plan = asgi.post("/v1/plan", {"preset": "rtx4070-d12"}).json()["plan"]
    assert plan["parameters"]["total"] == 286_261_730
    assert plan["horizon"]["tokens"] == 8_519_680_000
    assert asgi.get("/v1/runs").json()["data"] == []


def test_events_list_in_order_and_by_cursor(asgi: Asgi) -> None:
    asgi.create()
    events = asgi.get("/v1/runs/demo/events").json()["data"]
    assert [event["kind"] for event in events] == ["created", "state"]
    later = asgi.get(f"/v1/runs/demo/events?after={events[0]['id']}").json()["data"]
    assert later == events[1:]
    newest = asgi.get("/v1/events?newest=true&limit=1").json()
    assert newest["data"] == events[1:]
    assert newest["has_more"]
    assert asgi.get("/v1/events?newest=true&limit=5").json()["data"] == events
    before = asgi.get(f"/v1/events?newest=true&limit=5&after={newest['next']}").json()
    assert before["data"] == events[:1]


def test_jobs_are_refused_until_there_is_a_checkpoint(asgi: Asgi) -> None:
    asgi.create()
    for path, body in (
        ("samples", {"prompts": ["x"]}), ("exports", {}), ("evaluations", None), ("audits", None),
    ):  # fmt: skip
        answer = asgi.post(f"/v1/runs/demo/{path}", body)
        assert answer.status_code == 409, answer.text
    assert asgi.get("/v1/jobs").json()["data"] == []


def test_save_and_evaluate_now_become_jobs_of_the_running_trainer(asgi: Asgi) -> None:
    asgi.create()
    asgi.move("demo", "running")
    saved = asgi.post("/v1/runs/demo/checkpoints")
    evaluated = asgi.post("/v1/runs/demo/evaluations", {"core": True})
    for answer, kind in ((saved, "save"), (evaluated, "evaluate")):
        assert answer.status_code == 202, answer.text
        job = asgi.get(answer.headers["location"]).json()
        assert (job["kind"], job["where"], job["state"]) == (kind, "inline", "queued")
    assert asgi.request("DELETE", saved.headers["location"]).status_code == 202
    assert asgi.request("DELETE", saved.headers["location"]).status_code == 200


def test_an_import_from_nowhere_is_refused_at_once(asgi: Asgi) -> None:
    body = {"path": "/does/not/exist", "tag": "d4", "step": 1, "name": "imported"}
    answer = asgi.post("/v1/imports", body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/path"


def test_session_of_views_answers_everything_for_a_new_run(asgi: Asgi) -> None:
    asgi.create()
    for part in ("phases", "attempts", "checkpoints", "evaluations", "samples"):
        page = asgi.get(f"/v1/runs/demo/{part}").json()
        assert page.keys() == {"data", "has_more", "next"}
    assert asgi.get("/v1/runs/demo/progress").json()["step"] == 0
    assert asgi.get("/v1/runs/demo/logs").status_code == 404
    assert asgi.get("/v1/system").json()["auth"] == "none"
