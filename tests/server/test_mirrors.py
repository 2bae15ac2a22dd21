"""The curves of a run in TensorBoard's files and in Weights & Biases, read from a real API."""

from __future__ import annotations

import json
import signal
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

from server.cli.app import main
from server.client import Client
from server.client.mirrors import Copier
from server.queries import run_views
from tests.server import reporting
from tests.server.asgi import Asgi
from tests.server.live_server import serving
from tests.server.reporting import Reporter
from trainer.contract import events

Curves = dict[str, dict[int, tuple[float, float]]]


@pytest.fixture
def told(asgi: Asgi) -> Reporter:
    """A run that trained 60 steps and was evaluated at 50 under two identities."""
    reporter = reporting.attempt(asgi.db, asgi.settings, reporting.create(asgi.db))
    reporter.begin()
    reporter.steps(0, 50)
    for identity, value in (("a" * 64, 1.5), ("b" * 64, 1.6)):
        reporter.say(evaluated(50, value, identity))
    reporter.steps(50, 60)
    reporter.ingest()
    return reporter


def evaluated(step: int, value: float, identity: str = "a" * 64) -> events.EvaluationResult:
    return events.EvaluationResult(
        evaluation="bpb", step=step, value=value, identity=identity, settings={}, result={},
        seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def client(asgi: Asgi) -> Iterator[Client]:
    with serving(asgi) as served, Client(f"http://127.0.0.1:{served.port}") as made:
        yield made


def mirror(client: Client, *arguments: str) -> int:
    """The exit status of `traind mirror demo …`."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["--url", client.url, "mirror", "demo", *arguments])
    finally:
        signal.signal(signal.SIGINT, before)
    return int(ended.value.code or 0)


def in_files(directory: Path) -> Curves:
    """{tag: {step: (value, unix seconds)}} of all event files; a later value of a step wins."""
    found: Curves = defaultdict(dict)
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, the record, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag][event.step] = (value.simple_value, event.wall_time)
    return found


def test_tensorboard_gets_every_step_at_its_time(
    told: Reporter, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror(client, "--tensorboard", str(tmp_path)) == 0
    assert "copied demo up to step 60" in capsys.readouterr().out
    assert mirror(client, "--tensorboard", str(tmp_path), "--json") == 0
    told_as_json = {"run": "demo", "step": 60, "state": "queued"}
    assert json.loads(capsys.readouterr().out) == told_as_json
    curves = in_files(tmp_path / "demo")
    assert sorted(curves["loss"]) == list(range(60))
    expected = {s.key: s.points for s in client.metrics("demo").series if s.identity is None}
    for key, points in expected.items():
        for step, seconds, mean, _, _ in points:
            if mean is not None:
                assert curves[key][step] == pytest.approx((mean, seconds), rel=1e-6), key
    assert curves["val_bpb/aaaaaaaa"].keys() == curves["val_bpb/bbbbbbbb"].keys() == {50}
    assert "val_bpb" not in curves


class Kept:
    """A mirror that remembers."""

    def __init__(self) -> None:
        self.values: list[tuple[str, int, float]] = []
        self.flushes = 0

    def put(self, tag: str, step: int, value: float, unix_seconds: float) -> None:
        self.values.append((tag, step, value))

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None: ...

    def steps(self, tag: str = "loss") -> list[int]:
        return [step for name, step, _ in self.values if name == tag]


def test_a_second_look_copies_what_is_new_and_only_that(told: Reporter, client: Client) -> None:
    kept = Kept()
    copier = Copier(client, "demo", [kept])
    copier.copy()
    seen = len(kept.values)
    copier.copy()
    assert len(kept.values) == seen
    told.steps(60, 70)
    told.say(evaluated(20, 2.0))  # of an old checkpoint
    told.ingest()
    copier.copy()
    assert kept.steps() == list(range(70))
    assert kept.values[-1] == ("val_bpb/aaaaaaaa", 20, 2.0)
    assert copier.last == 69


def test_after_a_rewind_the_steps_come_again(told: Reporter, client: Client, asgi: Asgi) -> None:
    kept = Kept()
    copier = Copier(client, "demo", [kept])
    copier.copy()
    again = reporting.attempt(asgi.db, asgi.settings, told.run_id)
    again.begin(step=40)
    again.steps(40, 45, loss=9.0)
    again.ingest()
    copier.copy()
    assert kept.steps()[60:] == list(range(40, 45))
    assert copier.last == 44


def test_following_ends_with_the_run(told: Reporter, client: Client, asgi: Asgi, tmp_path: Path):
    with asgi.db.write() as session:
        run_views.get_run(session, "demo").state = "completed"
    ask = ("--tensorboard", str(tmp_path), "--follow", "--every", "0.1")
    assert mirror(client, *ask) == 0
    assert len(in_files(tmp_path / "demo")["loss"]) == 60


def test_weights_and_biases_is_told_by_step(
    told: Reporter, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library is not here: what it is asked is what its documentation says."""
    asked: dict[str, Any] = {"log": [], "define": [], "finished": 0}

    class Run:
        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            asked["define"].append((name, step_metric))

        def log(self, values: dict[str, float]) -> None:
            asked["log"].append(values)

        def finish(self) -> None:
            asked["finished"] += 1

    def init(**given: Any) -> Run:
        asked["init"] = given
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # type: ignore[arg-type]
    client.patch_run("demo", {"notify": ["https://example.org/secret"]})
    assert mirror(client, "--wandb", "mine") == 0
    assert asked["init"]["project"] == "mine"
    assert asked["init"]["id"] == told.run_id
    assert asked["init"]["config"]["model"]["depth"] == 4
    assert "secret" not in str(asked["init"])
    assert asked["define"] == [("step", None), ("*", "step")]
    steps = [values["step"] for values in asked["log"]]
    assert sorted(set(steps)) == list(range(60))
    assert asked["log"][7]["loss"] == pytest.approx(3.0 - 0.007)
    assert asked["finished"] == 1


@pytest.mark.parametrize(
    ("ask", "code", "said"),
    [
        ([], 2, "give a target"),
        (["--wandb", "mine"], 1, "wandb is not installed: pip install wandb"),
        (["--tensorboard", "DIR"], 1, "pip install 'traind[tensorboard]'"),
    ],
)
def test_what_is_missing_is_said(
    told: Reporter, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], ask: list[str], code: int, said: str,
) -> None:  # fmt: skip
    for name in ("wandb", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    place = tmp_path / "board"
    ask = [str(place) if part == "DIR" else part for part in ask]
    assert mirror(client, *ask) == code
    assert said in capsys.readouterr().err
    assert not place.exists()


def test_a_place_that_cannot_be_written_is_refused(
    told: Reporter, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert mirror(client, "--tensorboard", str(tmp_path / "file")) == 1
    assert "cannot be written" in capsys.readouterr().err
