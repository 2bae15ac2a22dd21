"""The commands against a scripted daemon: what they send, print and exit with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from server.cli import power as cli_power
from server.cli.app import build, main
from server.cli.specfile import read_spec
from server.reporting import png, preview
from tests.server import stub_daemon
from tests.server.stub_daemon import (
    Asked,
    Reply,
    Stub,
    detail,
    job,
    page,
    problem,
    progress,
    running,
    summary,
)
from tests.server.test_cli_text import HOSTILE, reference


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Traind = Callable[..., Ran]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running() as stub:
        yield stub


@pytest.fixture
def traind(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Traind:
    """Runs one command against the stub, as if in a pipe."""
    monkeypatch.setenv("TRAIND_URL", stub.url)
    monkeypatch.setenv("TRAIND_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("TRAIND_TOKEN_FILE", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


def test_ps_lists_runs(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/runs", page(summary("a"), summary("b", "queued", queue_position=2)))
    ran = traind("ps")
    assert ran.code == 0
    assert "a  " in ran.out
    assert "50 / 200" in ran.out
    assert "number 2 in the queue" in ran.out
    assert [run["name"] for run in traind("ps", "--json").json] == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "word"), [("disk_full", "waiting for disk"), ("silent", "silent")]
)
def test_ps_shows_what_a_run_waits_for_instead_of_a_rate(
    stub: Stub, traind: Traind, code: str, word: str
):
    waits = {"code": code, "message": "No room.", "since": 1.0}
    run = summary("a", condition=waits, tokens_per_second=123_000.0, eta_seconds=60.0)
    stub.on("GET", "/v1/runs", page(run))
    said = traind("ps").out
    assert word in said
    assert "No room." in said
    assert "running" not in said
    assert "tok/s" not in said
    assert "1 min" not in said


def test_ps_without_runs_says_how_to_make_one(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/runs", page())
    ran = traind("ps")
    assert (ran.code, ran.out) == (0, "")
    assert "traind run" in ran.err
    assert traind("ps", "--json").json == []


def test_f54_hostile_strings_reach_the_terminal_as_text(stub: Stub, traind: Traind):
    run = detail("demo", title=HOSTILE, metadata={"k": HOSTILE}, reason_message=HOSTILE)
    stub.on("GET", "/v1/runs", page(summary(HOSTILE, "failed", reason_message=HOSTILE)))
    stub.on("GET", "/v1/runs/demo", Reply({**run, "advice": HOSTILE, "directory": HOSTILE}))
    event = stub_daemon.event(1, HOSTILE)
    stub.on("GET", "/v1/runs/demo/events", page(event))
    headers = {"Traind-Attempt": "1", "Traind-Next-Offset": "9", "Content-Type": "text/plain"}
    stub.on("GET", "/v1/runs/demo/logs", Reply(f"{HOSTILE}\n", headers=headers))
    stub.on("GET", "/v1/runs/demo/report", Reply(HOSTILE))
    stub.on("GET", "/v1/jobs", page(job(message=HOSTILE, stage=HOSTILE)))
    stub.on("POST", "/v1/runs/demo/pause", problem(409, "conflict", HOSTILE, hint=HOSTILE))
    commands = [
        ("ps",), ("ps", "--json"), ("show", "demo"), ("show", "demo", "--json"), ("jobs",),
        ("events", "demo"), ("logs", "demo"), ("report", "demo"), ("pause", "demo"),
    ]  # fmt: skip
    for command in commands:
        ran = traind(*command)
        text = ran.out + ran.err
        assert "red]x[" in text, command
        assert ":smile:" in text, command
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028]", text), command


def test_run_sends_the_file_with_what_is_set_over_it(stub: Stub, traind: Traind, tmp_path: Path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: one\nmodel: {depth: 4}\ndata: {source: text, path: texts}\n")
    stub.on("POST", "/v1/runs", Reply(detail("one", "queued"), 201))
    ran = traind(
        "run", str(spec), "--set", "model.depth=8", "--set", "schedule.final_lr_frac=0.1",
        "--set", "evaluate.core_every=end", "--name", "two", "--no-start",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert stub.asked[0].body == {
        "name": "two", "model": {"depth": 8}, "start": False,
        "data": {"source": "text", "path": str(tmp_path / "texts")},
        "schedule": {"final_lr_frac": 0.1}, "evaluate": {"core_every": "end"},
    }  # fmt: skip
    assert "one (run_1) is queued" in ran.out


def test_run_reads_json_from_a_pipe(stub: Stub, traind: Traind, monkeypatch: pytest.MonkeyPatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"name": "piped", "horizon": {"steps": 7}}'))
    stub.on("POST", "/v1/runs", Reply(detail("piped"), 201))
    assert traind("run", "-", "--json").json["name"] == "piped"
    assert stub.asked[0].body == {"name": "piped", "horizon": {"steps": 7}}


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",), ("run", "/nowhere/spec.yaml"), ("run", "--set", "depth"),
        ("run", "--set", "a.=1"),
        ("run", "--name", "x", "--set", "horizon.flops=.nan"), ("extend", "demo"),
        ("extend", "demo", "--to", "5", "--add-steps", "5"), ("report", "x", "--html", "--json"),
        ("metrics", "x", "--parquet"), ("nonsense",), ("pause",), ("delete", "demo"),
        ("cancel", "demo"), ("serve", "--port", "99999"), ("extend", "demo", "--to", "0"),
    ],
)  # fmt: skip
def test_wrong_usage_is_2_and_asks_for_no_change(
    stub: Stub, traind: Traind, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # no terminal: nobody can be asked
    stub.on("GET", "/v1/runs/demo", Reply(detail()))
    stub.on("GET", "/v1/runs/demo/checkpoints", page())
    ran = traind(*arguments)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert ran.err
    assert all(asked.method == "GET" for asked in stub.asked)


def test_a_spec_that_is_no_mapping_is_2(traind: Traind, tmp_path: Path):
    for content in ("- a\n", "a: [", "1: 2\n"):
        (tmp_path / "spec.yaml").write_text(content)
        assert traind("run", str(tmp_path / "spec.yaml")).code == 2


def test_a_refusal_is_1_with_fields_and_hint(stub: Stub, traind: Traind):
    errors = [{"pointer": "/model/depth", "detail": "must be at least 1"}]
    answer = problem(422, "invalid", "the spec is not valid", errors=errors, hint="see traind plan")
    stub.on("POST", "/v1/runs", answer)
    ran = traind("run", "--name", "x")
    assert (ran.code, ran.out) == (1, "")
    assert "/model/depth: must be at least 1" in ran.err
    assert "hint: see traind plan" in ran.err


def test_no_daemon_is_3_and_says_how_to_start_one(traind: Traind):
    ran = traind("--url", "http://127.0.0.1:1", "ps")
    assert ran.code == 3
    assert "traind serve" in ran.err


def test_something_else_at_the_url_is_1(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/runs", Reply("<html>", headers={"Content-Type": "text/html"}))
    ran = traind("ps")
    assert ran.code == 1
    assert "is it a traind daemon" in ran.err


@pytest.mark.parametrize("verb", ["start", "pause", "resume"])
def test_a_verb_says_how_the_run_stands(stub: Stub, traind: Traind, verb: str):
    stub.on("POST", f"/v1/runs/demo/{verb}", Reply(detail(state="queued"), 202))
    assert "demo is queued" in traind(verb, "demo").out
    assert traind(verb, "demo", "--json").json["state"] == "queued"


def test_pause_can_wait_until_the_device_is_free(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/pause", Reply(detail(state="pausing"), 202))
    stub.on("GET", "/v1/runs/run_1/progress", Reply(progress("pausing")), Reply(progress("paused")))
    stub.on("GET", "/v1/runs/run_1", Reply(detail(state="paused")))
    assert "demo is paused" in traind("pause", "demo", "--wait").out


def test_a_pause_that_ended_otherwise_is_1(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/pause", Reply(detail(state="pausing"), 202))
    stub.on("GET", "/v1/runs/run_1/progress", Reply(progress("failed")))
    stub.on("GET", "/v1/runs/run_1", Reply(detail(state="failed")))
    assert traind("pause", "demo", "--wait").code == 1


@pytest.mark.parametrize(
    ("state", "ended_at", "words"),
    [("queued", None, "(requested: running)"), ("completed", 9.0, ""), ("failed", 9.0, "")],
)
def test_show_names_what_was_requested_until_the_run_has_ended(
    stub: Stub, traind: Traind, state: str, ended_at: float | None, words: str
):
    stub.on("GET", "/v1/runs/demo", Reply(detail(state=state, ended_at=ended_at)))
    shown = traind("show", "demo").out
    assert state in shown
    assert words in shown
    assert ("requested:" in shown) is bool(words)


def test_resume_sends_only_the_overrides_given(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/resume", Reply(detail(), 202))
    traind("resume", "demo")
    traind("resume", "demo", "--device-batch-size", "4", "--no-compile")
    assert stub.asked[0].body is None
    assert stub.asked[1].body == {"overrides": {"device_batch_size": 4, "compile": False}}
    traind("resume", "demo", "--on-non-finite", "rewind")
    assert stub.asked[2].body == {"recovery": {"on_non_finite": "rewind"}}
    traind("resume", "demo", "--max-rewinds", "5")
    assert stub.asked[3].body == {"recovery": {"max_rewinds": 5}}


def test_resume_sends_the_place_from_now_on(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/resume", Reply(detail(), 202))
    keys = ("nodes=2", "time_limit=30", "account=42", "modules=cuda/12.4,gcc")
    traind("resume", "demo", *(word for key in keys for word in ("--place", key)))
    place = {"engine": "slurm", "nodes": 2, "time_limit": "30", "account": "42"}
    assert stub.asked[0].body == {"place": {**place, "modules": ["cuda/12.4", "gcc"]}}
    traind("resume", "demo", "--place", "slurm")
    assert stub.asked[1].body == {"place": {"engine": "slurm"}}
    traind("resume", "demo", "--place", "local")
    assert stub.asked[2].body == {"place": None}


@pytest.mark.parametrize(
    "given", [["nowhere"], ["local", "nodes=2"], ["nodes=1", "nodes=2"], ["=gpu"]]
)
def test_a_place_that_is_none_is_refused_by_name(traind: Traind, given: list[str]):
    said = traind("resume", "demo", *(word for one in given for word in ("--place", one)))
    assert said.code == 2
    assert "--place" in said.err


def test_the_log_of_a_job_is_printed(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/jobs/job_1/logs", Reply("reading step 9\n", 200))
    assert "reading step 9" in traind("job", "job_1", "--log").out


def test_show_says_when_a_run_was_paused(stub: Stub, traind: Traind):
    why = "Paused by you on the page."
    stub.on(
        "GET", "/v1/runs/demo", Reply(detail(state="paused", reason_message=why, state_since=0.0))
    )
    shown = re.sub(r"\s+", " ", traind("show", "demo").out)
    assert re.search(r"why Paused by you on the page at [\d: -]+\.", shown), shown


def test_rename_sends_the_name_and_says_which_program_asks(stub: Stub, traind: Traind):
    stub.on("PATCH", "/v1/runs/demo", Reply(detail(name="better")))
    done = traind("rename", "demo", "better")
    assert (done.code, done.out.strip()) == (0, "demo is now better (run_1)")
    assert stub.asked[0].body == {"name": "better"}
    assert stub.asked[0].headers["traind-client"] == "cli"


def test_delete_says_yes_for_scripts(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/runs/demo", Reply(detail()))
    stub.on("GET", "/v1/runs/demo/checkpoints", page())
    stub.on("DELETE", "/v1/runs/run_1", Reply("", 204))
    assert traind("delete", "demo", "--yes").code == 0
    assert traind("delete", "demo", "--yes", "--json").json == {"deleted": "demo"}
    assert len(stub.requests("DELETE", "/v1/runs/run_1")) == 2


# --- extend --------------------------------------------------------------------------------------


def extended(plan: Any = None) -> Reply:
    made = reference() if plan is None else plan
    answer = {
        "run": detail("demo", "queued"), "plan": made and made.model_dump(mode="json"),
        "joint": made and made.joint.model_dump(mode="json"), "discarded_steps": 0,
        "warnings": made.warnings if made else [],
    }  # fmt: skip
    return Reply(answer, 202)


def test_extend_sends_what_was_said(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/extend", extended())
    ran = traind(
        "extend", "demo", "--to", "200000", "--mode", "rewarm", "--rewarm-steps", "100", "--at",
        "end", "--name", "more", "--no-start", "--keep-weight-decay", "--yes",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert stub.asked[0].body == {
        "to_step": 200_000, "at": "end", "name": "more", "start": False,
        "schedule": {"mode": "rewarm", "rewarm_steps": 100, "weight_decay": "keep"},
    }  # fmt: skip
    assert "dry_run" not in stub.asked[0].query
    assert "continues to step 200,000" in ran.out


def test_the_preview_draws_the_curve_and_changes_nothing(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/extend", extended())
    ran = traind("extend", "demo", "--to", "200000", "--preview")
    assert ran.code == 0
    assert [asked.query for asked in stub.asked] == [{"dry_run": ["true"]}]
    assert re.search("[\u2801-\u28ff]", ran.out)
    for said in ("┊", "70,000", "learning rate", "hold", "rewarm", "decay", "0.05 ->"):
        assert said in ran.out
    assert "warmdown starts at step 70,000" in ran.err
    planned = traind("extend", "demo", "--to", "200000", "--preview", "--json").json
    assert planned["plan"]["warmdown_start"] == 70_000


def drawn(asked: Asked) -> Reply:
    """The preview, as JSON or as the picture that the request accepts."""
    svg = preview.svg("demo", reference())
    pictures = {"image/svg+xml": svg, "image/png": png.render(svg)}
    return Reply(pictures[kind]) if (kind := asked.headers["accept"]) in pictures else extended()


def test_the_preview_is_written_as_a_picture(stub: Stub, traind: Traind, tmp_path: Path):
    stub.on("POST", "/v1/runs/demo/extend", drawn)
    file = tmp_path / "curve.svg"
    file.write_text("an older one")
    ask = ("extend", "demo", "--to", "200000", "--preview", "--picture", str(file))
    ran = traind(*ask)
    assert ran.code == 0, ran.err
    assert f"wrote {file}" in ran.err
    assert "┊" in ran.out
    assert file.read_text() == preview.svg("demo", reference())
    assert [asked.query for asked in stub.asked] == [{"dry_run": ["true"]}] * 2
    assert not any("idempotency-key" in asked.headers for asked in stub.asked)
    assert traind(*ask, "--json").json["plan"]["warmdown_start"] == 70_000
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["curve.svg"]
    assert traind(*ask[:-1], str(tmp_path / "curve.PNG")).code == 0
    assert (tmp_path / "curve.PNG").read_bytes() == png.render(file.read_text())


def test_a_picture_that_cannot_be_written_is_refused(stub: Stub, traind: Traind, tmp_path: Path):
    stub.on("POST", "/v1/runs/demo/extend", drawn)
    os.mkfifo(tmp_path / "pipe.svg")
    (tmp_path / "folder.svg").mkdir()
    ask = ("extend", "demo", "--to", "200000")
    for place in ("folder.svg", "pipe.svg", "nowhere/curve.svg"):
        ran = traind(*ask, "--preview", "--picture", str(tmp_path / place))
        assert (ran.code, ran.out) == (1, "")
        assert f"{tmp_path / place} cannot be written" in ran.err
    assert (tmp_path / "pipe.svg").is_fifo()
    ran = traind(*ask, "--picture", str(tmp_path / "x.svg"))
    assert (ran.code, "goes with --preview" in ran.err) == (2, True)
    ran = traind(*ask, "--preview", "--picture", str(tmp_path / "x.gif"))
    assert (ran.code, "ends in .svg or .png" in ran.err) == (2, True)


def test_a_png_without_its_library_is_refused(stub: Stub, traind: Traind, tmp_path: Path):
    refused = problem(406, "not-acceptable", "Offered here: application/json, image/svg+xml.")
    stub.on("POST", "/v1/runs/demo/extend", extended(), refused)
    file = tmp_path / "curve.png"
    ran = traind("extend", "demo", "--to", "200000", "--preview", "--picture", str(file))
    assert ran.code == 1
    assert "pip install 'traind[png]'" in ran.err
    assert not file.exists()


def test_an_extend_at_a_terminal_is_asked_about(
    stub: Stub, traind: Traind, monkeypatch: pytest.MonkeyPatch
):
    stub.on("POST", "/v1/runs/demo/extend", extended())
    monkeypatch.setattr(sys, "stdin", _Terminal("n\n"))
    assert traind("extend", "demo", "--to", "200000").code == 1
    assert len(stub.asked) == 1
    monkeypatch.setattr(sys, "stdin", _Terminal("y\n"))
    assert traind("extend", "demo", "--to", "200000").code == 0
    assert [bool(asked.query) for asked in stub.asked] == [True, True, False]


def test_an_extend_that_changes_nothing_says_so(stub: Stub, traind: Traind):
    answer = extended().body | {"plan": None, "joint": None, "warnings": []}
    stub.on("POST", "/v1/runs/demo/extend", Reply(answer))
    assert "no change" in traind("extend", "demo", "--to", "200").out


# --- plan ----------------------------------------------------------------------------------------


def test_the_plan_of_the_reference_run_without_a_daemon(traind: Traind):
    ran = traind("plan", "--preset", "rtx4070-d12", "--tokens-per-second", "55700")
    assert ran.code == 0
    for said in (
        "286,261,730", "65,536 tokens = 8 x 2,048 x 4", "0.35355", "0.09899", "8,519,680,000",
        "887 MFLOP", "793 MB", "1.25 GB", "42 h 29 min",
    ):  # fmt: skip
        assert said in ran.out
    made = traind("plan", "--preset", "rtx4070-d12", "--offline", "--json").json
    assert made["parameters"]["total"] == 286_261_730


def test_the_plan_lists_what_another_recipe_changes(traind: Traind):
    ask = ("plan", "--offline", "--preset", "demo")
    changed = traind(*ask, "--set", "model.recipe=2026-09").out
    for words in ("2026-09", "no smear", "stored in float32", "5 special tokens instead of 9"):
        assert words in changed
    assert "changes" not in traind(*ask).out
    mixed = traind(*ask, "--set", "optimizer.recipe=2026-03").out
    assert "2026-07, optimizer 2026-03" in mixed


def test_the_plan_asks_the_daemon_when_there_is_one(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/plan", Reply({"plan": detail()["plan"]}))
    assert "parameters" in traind("plan", "--preset", "demo").out
    assert stub.asked[0].body == {"preset": "demo", "name": "plan"}


def test_without_a_daemon_the_plan_is_reckoned_here_and_says_so(traind: Traind):
    ran = traind("--url", "http://127.0.0.1:1", "plan", "--preset", "demo")
    assert ran.code == 0
    assert "no daemon answers" in ran.err


@pytest.mark.parametrize("setting", ["model.depth=0", "batch.tokens=1000", "modle.depth=3"])
def test_a_plan_that_cannot_be_is_1_with_its_field(traind: Traind, setting: str):
    ran = traind("plan", "--offline", "--preset", "demo", "--set", setting)
    assert (ran.code, ran.out) == (1, "")
    assert setting.split(".")[0] in ran.err


# --- jobs, checkpoints, metrics ------------------------------------------------------------------


def test_a_sample_is_waited_for_and_printed(stub: Stub, traind: Traind):
    result = {"samples": [{"prompt": "def main(", "text": "):\n    pass"}]}
    stub.on("POST", "/v1/runs/demo/samples", Reply(job("queued"), 202))
    stub.on("GET", "/v1/jobs/job_1", Reply(job("running")), Reply(job(result=result)))
    ran = traind(
        "sample", "demo", "--step", "100", "--prompt", "def main(", "--temperature", "0.5",
        "--top-k", "10",
    )  # fmt: skip
    assert ran.out == "def main():\n    pass\n"
    assert stub.asked[0].body == {
        "prompts": ["def main("], "step": 100, "temperature": 0.5, "top_k": 10,
    }  # fmt: skip


def test_a_sample_is_printed_as_it_is_written_and_once(stub: Stub, traind: Traind):
    """The stream breaks off in the second text: the rest comes from the result, escaped."""
    result = {"samples": [{"prompt": "a", "text": "bc"}, {"prompt": "d", "text": "e\x1b[2Jf"}]}
    pieces = [(0, "b"), (0, "c"), (7, "nobody's"), (1, "e")]
    stream = [
        f"event: token\ndata: {json.dumps({'prompt': i, 'text': t})}\n\n".encode()
        for i, t in pieces
    ]
    stub.on("POST", "/v1/runs/demo/samples", Reply(job("queued"), 202))
    stub.on("GET", "/v1/jobs/job_1/stream", Reply(stream=stream))
    stub.on("GET", "/v1/jobs/job_1", Reply(job(result=result)))
    ran = traind("sample", "demo", "--prompt", "a", "--prompt", "d")
    assert ran.out == "abc\nde\\x1b[2Jf\n"
    assert [asked.path for asked in stub.asked][1] == "/v1/jobs/job_1/stream"


def test_a_failed_job_is_1(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/exports", Reply(job("failed", "export", message="no room"), 202))
    ran = traind("export", "demo", "--format", "huggingface")
    assert ran.code == 1
    assert "no room" in ran.err


AUDITED = {"checkpoint": "step-000000040-a0001", "compared": 5}


def test_f37_an_audit_says_its_verdict(stub: Stub, traind: Traind):
    sound = {"verdict": "verified", **AUDITED}
    stub.on("POST", "/v1/runs/demo/audits", Reply(job(kind="audit", result=sound), 202))
    ran = traind("audit", "demo", "--steps", "5")
    assert stub.asked[0].body == {"steps": 5}
    assert ran.code == 0
    assert ran.out.startswith("verified: 5 steps from step-000000040-a0001 were repeated")


def test_f37_an_audit_that_found_other_bits_is_1(stub: Stub, traind: Traind):
    found = [{"step": 42, "recorded": 3.5, "found": 3.75}]
    flipped = {"verdict": "mismatch", **AUDITED, "differences": found}
    stub.on("POST", "/v1/runs/demo/audits", Reply(job(kind="audit", result=flipped), 202))
    ran = traind("audit", "demo")
    assert ran.code == 1
    assert "MISMATCH" in ran.out
    assert "step 42 had the loss 3.5 and has 3.75 now" in ran.out


def test_no_wait_leaves_the_job_to_itself(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/imports", Reply(job("queued", "import"), 202))
    ran = traind(
        "import", "nanochat", "/base", "--tag", "d4", "--step", "60", "--name", "mine", "--no-wait"
    )
    assert "traind job job_1" in ran.out
    assert stub.asked[0].body == {
        "format": "nanochat", "path": "/base", "tag": "d4", "step": 60, "name": "mine",
    }  # fmt: skip


def test_an_import_without_a_name_lists_what_is_there(stub: Stub, traind: Traind):
    found = {
        "path": "/base/experiments/first/d4/base", "layout": "experiments", "experiment": "first",
        "tag": "d4", "stage": "base", "steps": [30, 60], "weights_only": [90], "dataset": "stdlib",
    }  # fmt: skip
    result = {"listing": {"found": [found]}, "preview": None}
    stub.on("POST", "/v1/imports", Reply(job(kind="import", result=result), 202))
    ran = traind("import", "nanochat", "/base")
    assert stub.asked[0].body == {"format": "nanochat", "path": "/base"}
    for words in ("first", "d4", "30, 60", "90", "stdlib", "--tag TAG --step STEP --name NAME"):
        assert words in ran.out


def test_a_dry_run_of_an_import_shows_what_it_becomes(stub: Stub, traind: Traind):
    shown = {
        "checkpoint": "/base/model_000060.pt", "generation": "v1 of 3 July 2026",
        "recipe": "2026-07", "muon": "2026-07", "precision": "fp32", "gpus": 2, "step": 60,
        "tokens": 61_440, "horizon_steps": 120, "parameters": 393_346, "val_bpb": 3.25,
        "corpus": None, "tokenizer": "/base/tokenizer", "exact": ["weights and optimizer state"],
        "inexact": ["an empty packing buffer"], "unknown": ["which Muon: --muon"],
        "notes": ["an old table"], "spec": {"schedule": {"warmup_steps": 40}},
    }  # fmt: skip
    result = {"listing": None, "preview": shown}
    stub.on("POST", "/v1/imports", Reply(job(kind="import", result=result), 202))
    ran = traind(
        "import", "nanochat", "/base", "--tag", "d4", "--dry-run", "--muon", "2026-07",
        "--weights-only", "--corpus", "/text",
    )  # fmt: skip
    assert stub.asked[0].body == {
        "format": "nanochat", "path": "/base", "tag": "d4", "dry_run": True, "muon": "2026-07",
        "weights_only": True, "corpus": "/text",
    }  # fmt: skip
    for words in (
        "v1 of 3 July 2026", "2 GPUs", "60 of 120", "61,440", "3.250000", "empty packing buffer",
        "which Muon", "an old table", "the built-in text",
    ):  # fmt: skip
        assert words in ran.out


def test_an_import_says_what_is_not_exact_about_it(stub: Stub, traind: Traind):
    history = {"inexact": ["an empty packing buffer"], "unknown": ["which Muon"]}
    result = {"spec": {}, "history": history, "run": "mine"}
    stub.on("POST", "/v1/imports", Reply(job(kind="import", result=result), 202))
    ran = traind("import", "nanochat", "/base", "--name", "mine")
    assert "traind extend mine --to STEP" in ran.out
    assert "an empty packing buffer" in ran.err
    assert "unknown: which Muon" in ran.err


def test_an_export_says_what_nanochat_does_otherwise(stub: Stub, traind: Traind):
    result = {"path": "/out", "files": ["a.pt"], "step": 60, "notes": ["its warmdown is linear"]}
    stub.on("POST", "/v1/runs/demo/exports", Reply(job(kind="export", result=result), 202))
    ran = traind("export", "demo", "--format", "nanochat-v2")
    assert stub.asked[0].body == {"format": "nanochat-v2"}
    assert "its warmdown is linear" in ran.err


def test_eval_measures_bpb_when_nothing_is_said(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/runs/demo/evaluations", Reply(job(kind="evaluate"), 202))
    stub.on("GET", "/v1/runs/demo/evaluations", page())
    traind("eval", "demo")
    traind("eval", "demo", "--core", "--where", "cpu")
    posted = stub.requests("POST", "/v1/runs/demo/evaluations")
    assert posted[0].body == {"bpb": True, "core": False}
    assert posted[1].body == {"bpb": False, "core": True, "where": "cpu"}


def test_eval_prints_the_value_and_what_each_task_of_core_scored(stub: Stub, traind: Traind):
    result = {
        "core_metric": 0.1916, "results": {"piqa": 0.611, "copa": 0.6},
        "centered_results": {"piqa": 0.222, "copa": 0.2}, "num_items": {"piqa": 1838, "copa": 100},
        "not_scored": {"copa": {"count": 2, "items": [[0, "why"], [1, "why"]]}},
    }  # fmt: skip
    found = {
        "id": 1, "kind": "core", "step": 100, "value": 0.1916, "identity": "c" * 64,
        "settings": {}, "result": result, "seconds": 2.0, "unix_seconds": 1.0, "job": "job_1",
        "attempt": None, "superseded": False, "best": False,
    }  # fmt: skip
    stub.on("POST", "/v1/runs/demo/evaluations", Reply(job(kind="evaluate"), 202))
    stub.on("GET", "/v1/runs/demo/evaluations", page(found))
    ran = traind("eval", "demo", "--core")
    assert ran.out.splitlines() == [
        "CORE 0.191600 at step 100",
        "  piqa: accuracy 0.6110, centred 0.2220",
        "  copa: accuracy 0.6000, centred 0.2000, 2 items not scored",
    ]


def checkpoint(step: int, **fields: Any) -> dict[str, Any]:
    name = f"step-{step:09d}-a0001"
    return {
        "id": name, "name": name, "step": step, "attempt": 1, "bytes": 1000,
        "manifest_sha256": "0", "why": "cadence", "pinned": False, "newest": False, "best": False,
        "superseded": False, "bad": None, "val_bpb": None, "next_loss": None, "save_seconds": 0.1,
        "stall_seconds": 0.0, "created_at": 1.0, **fields,
    }  # fmt: skip


def test_checkpoints_are_listed_and_pinned_by_step(stub: Stub, traind: Traind):
    both = (checkpoint(50, superseded=True, name="step-000000050-a0009"), checkpoint(50))
    stub.on("GET", "/v1/runs/demo/checkpoints", page(*both))
    path = "/v1/runs/demo/checkpoints/step-000000050-a0001"
    stub.on("PATCH", path, Reply(checkpoint(50, pinned=True)))
    assert "step-000000050-a0001" in traind("checkpoints", "demo").out
    assert traind("checkpoints", "list", "demo", "--json").json[1]["step"] == 50
    assert "is pinned" in traind("checkpoints", "pin", "demo", "50").out
    assert traind("checkpoints", "pin", "demo", "50", "--json").json["pinned"] is True
    assert stub.requests("PATCH", path)[0].body == {"pinned": True}
    assert traind("checkpoints", "unpin", "demo", "51").code == 1


def test_metrics_as_csv_and_into_a_file(stub: Stub, traind: Traind, tmp_path: Path):
    stub.on("GET", "/v1/runs/demo/metrics", Reply("key,step\nloss,1\n"))
    assert traind("metrics", "demo", "--keys", "loss, mfu", "--csv").out == "key,step\nloss,1\n"
    assert stub.asked[0].query["keys"] == ["loss,mfu"]
    assert stub.asked[0].headers["accept"] == "text/csv"
    traind("metrics", "demo", "--parquet", "-o", str(tmp_path / "m.parquet"))
    assert (tmp_path / "m.parquet").read_bytes() == b"key,step\nloss,1\n"
    assert traind("metrics", "demo", "--csv", "-o", "/nowhere/m.csv").code == 1


def test_logs_are_followed_over_attempts_until_the_run_settles(stub: Stub, traind: Traind):
    def part(asked: stub_daemon.Asked) -> Reply:
        attempt = int(asked.query.get("attempt", ["2"])[0])
        offset = int(asked.query.get("offset", ["0"])[0])
        if "tail" in asked.query and len(stub.requests("GET", "/v1/runs/demo/logs")) == 1:
            attempt = 1
        text = f"line of {attempt}\n" if offset == 0 else ""
        headers = {"Traind-Attempt": str(attempt), "Traind-Next-Offset": "10"}
        return Reply(text, headers=headers)

    stub.on("GET", "/v1/runs/demo/logs", part)
    answers = [Reply(progress()), Reply(progress()), Reply(progress("completed"))]
    stub.on("GET", "/v1/runs/demo/progress", *answers)
    ran = traind("logs", "demo", "-f")
    assert ran.out == "line of 1\nline of 2\n"


# --- the whole -----------------------------------------------------------------------------------


def _help(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from server.cli.app import main\ntry: main()\nexcept SystemExit: pass\n" \
           "heavy = {'httpx', 'pydantic', 'sqlalchemy', 'fastapi', 'torch', 'yaml', 'psutil'}\n" \
           "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip


def test_help_loads_nothing_heavy():
    answer = _help("--help")
    assert answer.stderr.strip() == "[]"
    assert "watch" in answer.stdout


def test_every_command_has_help():
    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        assert command.help, f"{' '.join(path)} has no help"
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*path, name))
        yield path

    paths = set(walk(get_command(build()), ()))
    expected = {
        "serve", "run", "ps", "show", "watch", "logs", "events", "pause", "resume", "extend",
        "start", "cancel", "delete", "plan", "phases", "attempts", "metrics", "export", "sample",
        "eval", "report", "jobs", "job", "doctor", "rebuild", "demo",
    }  # fmt: skip
    assert {(name,) for name in expected} <= paths
    groups = {("checkpoints", v) for v in ("list", "pin", "unpin", "delete", "save")}
    groups |= {("service", v) for v in ("install", "uninstall", "show")}
    groups |= {("import", "nanochat"), ("fetch", "core"), ("token", "show-path")}
    assert groups <= paths


def test_names_are_completed_from_the_daemon(stub: Stub, traind: Traind):
    from server.cli import options, output

    stub.on("GET", "/v1/runs", page(summary("demo-1"), summary("other")))
    output.url.set(stub.url)
    assert options.run_names("de") == ["demo-1"]
    output.url.set("http://127.0.0.1:1")
    assert options.run_names("de") == []
    output.url.set(None)


class _Terminal:
    """A standard input that says it is a terminal."""

    def __init__(self, text: str) -> None:
        import io

        self._text = io.StringIO(text)

    def isatty(self) -> bool:
        return True

    def readline(self, *size: int) -> str:
        return self._text.readline(*size)


# A program of its own, or text that is handed out as it is.
WITHOUT_JSON = {
    ("serve",), ("demo",), ("rebuild",), ("logs",), ("fetch", "core"),
    ("service", "install"), ("service", "uninstall"), ("service", "show"),
}  # fmt: skip


def test_every_command_that_asks_the_daemon_speaks_json():
    def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            inner = getattr(command, "commands", None)
            yield from commands(command, (*path, name)) if inner else [((*path, name), command)]

    without = {
        path
        for path, command in commands(get_command(build()))
        if not any("--json" in option.opts for option in command.params)
    }
    assert without <= WITHOUT_JSON, without - WITHOUT_JSON


def test_the_shell_completes_the_names_of_runs(stub: Stub):
    stub.on("GET", "/v1/runs", page(summary("small"), summary("big"), summary("smooth")))
    asked = {
        "_TRAIND_COMPLETE": "complete_bash",
        "COMP_WORDS": "traind pause sm",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.app"], capture_output=True, text=True, timeout=60,
        env=os.environ | asked | {"TRAIND_URL": stub.url},
    )  # fmt: skip
    assert done.stdout.split() == ["small", "smooth"], done.stderr


@pytest.mark.parametrize("written", ["1e18", "1E+18", "1.0e18", "+1e18", "1_0e17", "1000000e12"])
def test_numbers_with_an_exponent_are_numbers_in_files_and_settings(tmp_path, written):
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: x\nhorizon:\n  flops: {written}\n")
    assert read_spec(str(spec), [])["horizon"]["flops"] == 1e18
    assert read_spec(None, [f"horizon.flops={written}"])["horizon"]["flops"] == 1e18
    told = read_spec(None, ["optimizer.matrix_lr=1e-3", "optimizer.scalar_lr=.5e-2"])
    assert told["optimizer"] == {"matrix_lr": 1e-3, "scalar_lr": 5e-3}


def test_a_json_file_says_what_json_says(tmp_path):
    body = {"name": "1e5", "title": "e5", "optimizer": {"matrix_lr": 1e-05}, "start": False}
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(body))
    assert read_spec(str(spec), []) == body


@pytest.mark.parametrize(
    "command", [["show"], ["sample", "demo", "--prompt"], ["import", "nanochat"], ["ps", "--state"]]
)
def test_an_argument_that_is_not_utf8_is_a_sentence(traind: Traind, command: list[str]) -> None:
    ran = traind(*command, os.fsdecode(b"\xff\xfe"))
    assert ran.code == 2
    assert "text that is not UTF-8 cannot be sent" in ran.err


def test_ps_says_what_a_run_waits_for_beside_the_queue(stub: Stub, traind: Traind):
    waits = {"reason": "outside_hours", "reason_message": "Outside its hours."}
    shut = summary("a", "queued", queue_position=1, **waits)
    stub.on("GET", "/v1/runs", page(shut, summary("b", "queued", queue_position=2)))
    shown = traind("ps").out
    assert "Outside its hours." in shown
    assert "number 2 in the queue" in shown


def test_queue_says_who_holds_a_device_and_who_waits(stub: Stub, traind: Traind):
    place = {
        "device": "cuda:0", "name": "a card", "run": "long", "job": None, "is_open": False,
        "closes_at": None, "opens_at": 2e9, "neighbour": None,
    }  # fmt: skip
    waits = {
        "position": 1, "run": "run_1", "name": "short", "priority": 5, "devices": ["cuda:0"],
        "reason": "waiting_for_device", "reason_message": "long comes first.", "until": None,
    }  # fmt: skip
    answer = {"places": [place], "waiting": [waits], "num_waiting": 3, "next_change_at": None}
    stub.on("GET", "/v1/queue", Reply(answer))
    ran = traind("queue")
    for words in ("long", "from 2033-05-18", "short", "long comes first."):
        assert words in ran.out
    assert "2 more runs" in ran.err


def test_hours_of_a_run_are_patched(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/runs/demo", Reply(detail("demo")))
    stub.on("PATCH", "/v1/runs/demo", Reply(detail("demo")))
    assert traind("hours", "demo", "--from", "22:00", "--to", "07:00", "--days", "fri").code == 0
    rule = {"from": "22:00", "to": "07:00", "days": ["fri"]}
    assert [one.body for one in stub.requests("PATCH", "/v1/runs/demo")] == [{"hours": [rule]}]
    assert traind("hours", "demo", "--always").code == 0
    assert stub.requests("PATCH", "/v1/runs/demo")[1].body == {"hours": None}
    assert traind("hours", "demo", "--always", "--from", "22:00").code == 2


def test_hours_of_a_device_keep_its_neighbours(stub: Stub, traind: Traind):
    rule = {"least_bytes": 1, "yield_to": ["game"], "ignore": []}
    before = {"hours": None, "neighbours": rule}
    stub.on("GET", "/v1/devices/cuda:0/policy", Reply(before))
    stub.on("PUT", "/v1/devices/cuda:0/policy", Reply({**before, "hours": [{"from": "22:00"}]}))
    ran = traind("hours", "cuda:0", "--from", "22:00")
    assert ran.code == 0, ran.err
    assert [one.body for one in stub.requests("PUT", "/v1/devices/cuda:0/policy")] == [
        {"hours": [{"from": "22:00"}], "neighbours": rule, "power": None}
    ]
    assert "22:00" in ran.err


def test_priority_is_patched(stub: Stub, traind: Traind):
    stub.on("PATCH", "/v1/runs/demo", Reply(detail("demo")))
    assert traind("priority", "demo", "--", "-5").code == 0
    assert [one.body for one in stub.requests("PATCH", "/v1/runs/demo")] == [{"priority": -5}]
    assert traind("priority", "demo", "101").code == 2


# --- power and groups ----------------------------------------------------------------------------


def power_policy(**change: Any) -> dict[str, Any]:
    return {"hours": None, "neighbours": None, "power": None, "problems": [], **change}


def test_a_power_rule_of_some_hours_comes_before_those_of_all(stub: Stub, traind: Traind):
    always = {"power_limit_watts": 200.0, "ceiling_celsius": 80.0, "hours": None}
    path = "/v1/devices/cuda:0/policy"
    stub.on("GET", path, Reply(power_policy(power=[always])))
    stub.on("PUT", path, Reply(power_policy(power=[always], problems=["type  sudo nvidia-smi"])))
    ran = traind("power", "cuda:0", "--limit", "120", "--from", "22:00", "--to", "07:00")
    assert "200 W, runs yield at 80 °C" in ran.out
    assert "type  sudo nvidia-smi" in ran.err
    night = {"power_limit_watts": 120.0, "ceiling_celsius": None}
    [sent] = [one.body["power"] for one in stub.requests("PUT", path)]
    assert sent[0] == {**night, "hours": [{"from": "22:00", "to": "07:00"}]}
    assert sent[1]["power_limit_watts"] == 200.0
    assert traind("power", "cuda:0", "--off").code == 0
    assert stub.requests("PUT", path)[1].body["power"] is None
    assert traind("power", "cuda:0", "--from", "22:00").code == 2


def tuned(stub: Stub, *, problems: list[str]) -> None:
    """A run whose speed and draw follow the limit that was put last: 215 W is 10 % quicker than
    150 W, and 100 W half as quick."""
    path, state = "/v1/devices/cuda:0/policy", {"watts": 215.0, "step": 0, "s": 0.0, "j": 0.0}
    rates = {215.0: (1.0, 200.0), 150.0: (0.92, 145.0), 100.0: (0.5, 98.0)}

    def put(asked: stub_daemon.Asked) -> Reply:
        rules = asked.body["power"] or [{"power_limit_watts": 215.0}]
        state["watts"] = rules[0]["power_limit_watts"]
        return Reply(power_policy(power=asked.body["power"], problems=problems))

    def step(asked: stub_daemon.Asked) -> Reply:
        speed, watts = rates[state["watts"]]
        state["step"] += 5
        state["s"] += 5 / speed
        state["j"] += 5 / speed * watts
        made = progress(step=int(state["step"]), energy_joules=state["j"])
        return Reply({**made, "training_seconds": state["s"], "end_step": 10**9})

    place = {
        "device": "cuda:0", "name": "a card", "run": "demo", "job": None, "is_open": True,
        "closes_at": None, "opens_at": None, "neighbour": None, "power_limit_watts": 215.0,
    }  # fmt: skip
    queue = {"places": [place], "waiting": [], "num_waiting": 0, "next_change_at": None}
    stub.on("GET", "/v1/queue", Reply(queue))
    stub.on("GET", path, Reply(power_policy()))
    stub.on("PUT", path, put)
    stub.on("GET", "/v1/runs/demo/progress", step)


def test_tune_power_recommends_the_cheapest_of_the_quick_limits(
    stub: Stub, traind: Traind, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli_power, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(cli_power, "POLL_SECONDS", 0.0)
    tuned(stub, problems=[])
    ran = traind("tune-power", "demo", "--caps", "100,150,215", "--minutes", "0.05", "--json")
    found = ran.json
    assert found["recommended_watts"] == 150.0
    at = {one["limit_watts"]: one for one in found["measured"]}
    assert at[150.0]["tokens_per_second"] == pytest.approx(4096 * 0.92)
    assert at[150.0]["watts"] == pytest.approx(145.0)
    assert at[150.0]["tokens_per_joule"] == pytest.approx(4096 * 0.92 / 145.0)
    assert at[100.0]["training_hours"] > 0
    puts = [one.body for one in stub.requests("PUT", "/v1/devices/cuda:0/policy")]
    assert [p["power"] and p["power"][0]["power_limit_watts"] for p in puts] == [
        100,
        150,
        215,
        None,
    ]


def test_tune_power_without_permission_prints_the_line_and_puts_the_policy_back(
    stub: Stub, traind: Traind
):
    tuned(stub, problems=["type  sudo nvidia-smi -i GPU-1 -pl 108"])
    ran = traind("tune-power", "demo")
    assert ran.code == 1
    assert "sudo nvidia-smi -i GPU-1 -pl 108" in ran.err
    puts = [one.body for one in stub.requests("PUT", "/v1/devices/cuda:0/policy")]
    assert [p["power"] and p["power"][0]["power_limit_watts"] for p in puts] == [108, None]


def group(**fields: Any) -> dict[str, Any]:
    member = {
        "run": "run_1", "name": "g-d2", "depth": 2, "variant": {"optimizer.matrix_lr": 0.02},
        "seed": 42, "state": "completed", "reason": "finished", "reason_message": "", "step": 9,
        "device": "cpu", "end_step": 9, "fraction": 1.0, "is_finished": True, "loss_smooth": 3.2,
        "val_bpb": 1.2345, "parameters": 1000, "tokens_seen": 9, "flops": 1e12,
        "flops_per_step": 1e11, "planned_flops": 1e12, "training_seconds": 60.0,
        "energy_joules": 7.2e6, "compute_multiplier": 1.25,
    }  # fmt: skip
    cell = {
        "depth": 2, "variant": member["variant"], "num_members": 1, "num_finished": 1,
        "flops": 1e12, "val_bpb_mean": 1.2345, "val_bpb_spread": None, "gain": 0.05,
        "gain_uncertainty": 0.01, "is_real": True, "compute_multiplier": 1.25,
        "multiplier_note": "",
    }  # fmt: skip
    ahead = {
        "depth": 6, "flops": 5e12, "tokens": 10, "parameters": 10, "val_bpb": 1.1,
        "val_bpb_interval": [1.0, 1.2], "hours": 2.5, "kwh": 0.4, "time_source": "depth 5",
    }  # fmt: skip
    fit = {
        "variant": {}, "form": "", "source": "", "num_points": 4, "points": [], "e": 0.9,
        "a": 0.4, "alpha": 0.3, "reference_flops": 1e12, "e_interval": [0.8, 1.0],
        "alpha_interval": [0.2, 0.4], "confidence": 0.95, "residual_spread": 0.001,
        "prediction": ahead, "not_told": ["One seed a depth."],
    }  # fmt: skip
    return {
        "id": "grp_1", "name": "g", "title": None, "created_at": 1.0, "num_members": 1,
        "counts": {"completed": 1}, "is_over": True, "best_val_bpb": 1.2345,
        "training_seconds": 60.0, "energy_joules": None, "base": {}, "depths": [2], "grid": {},
        "repeats": 1, "budget": None, "baseline": "optimizer.matrix_lr=0.01", "members": [member],
        "cells": [cell], "fits": [fit], "notes": ["a note"],
        "noise": {"spread": 0.002, "degrees_of_freedom": 2, "note": "Pooled."}, **fields,
    }  # fmt: skip


def test_group_create_sends_the_variations(stub: Stub, traind: Traind):
    stub.on("POST", "/v1/groups", Reply(group(), 201))
    ran = traind(
        "group", "create", "g", "--preset", "demo", "--depths", "2,4", "--repeats", "3",
        "--grid", "optimizer.matrix_lr=0.01,2e-2", "--grid", "model.window_pattern=L,SL",
        "--budget", "minutes=30", "--budget", "tokens=1e6",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert stub.requests("POST", "/v1/groups")[0].body == {
        "name": "g", "base": {"preset": "demo"}, "depths": [2, 4], "repeats": 3,
        "grid": {"optimizer.matrix_lr": [0.01, 0.02], "model.window_pattern": ["L", "SL"]},
        "budget": {"minutes": 30.0, "tokens": 1_000_000},
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [("--grid", "x"), ("--depths", "a"), ("--budget", "days=1"), ("--budget", "kwh=-1")]
)
def test_group_create_refuses_what_is_no_variation(traind: Traind, wrong: tuple[str, str]):
    assert traind("group", "create", "g", *wrong).code == 2


def test_group_show_compares_and_predicts(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/groups/g", Reply(group()))
    ran = traind("group", "show", "g", "--baseline", "old", "--next-depth", "6")
    for words in (
        "1.2345", "1.25x", "+0.0500 ± 0.0100 (real)", "Pooled.", "depth 6: val bpb 1.1000",
        "2 h 30 min, 0.40 kWh", "One seed a depth.",
    ):  # fmt: skip
        assert words in ran.out, words
    assert "a note" in ran.err
    asked = stub.requests("GET", "/v1/groups/g")[0].query
    assert asked == {"baseline": ["old"], "next_depth": ["6"]}


def test_groups_are_listed_cancelled_and_deleted(stub: Stub, traind: Traind):
    stub.on("GET", "/v1/groups", Reply({"data": [group()], "has_more": False, "next": None}))
    stub.on("GET", "/v1/groups/g", Reply(group()))
    stub.on("POST", "/v1/groups/g/cancel", Reply(group(), 202))
    stub.on("DELETE", "/v1/groups/grp_1", Reply(None, 204))
    assert "1 completed" in traind("group", "list").out
    assert "1 completed" in traind("group", "cancel", "g", "--yes").out
    assert traind("group", "delete", "g", "--runs", "--yes").code == 0
    assert stub.requests("DELETE", "/v1/groups/grp_1")[0].query == {"runs": ["true"]}
    assert traind("group", "delete", "g").code == 2  # not at a terminal: --yes is needed
