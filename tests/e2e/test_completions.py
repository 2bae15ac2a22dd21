"""Ordinary clients talk to a checkpoint: OpenAI's own, against the real daemon and trainer."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.database.db import Database
from server.schemas.jobs import JobView
from server.settings import Settings
from tests.e2e.real_daemon import TINY, RealDaemon
from tests.server import rows

FOREVER: dict[str, Any] = {"max_tokens": 600, "temperature": 1.0, "top_p": 0.9}  # of 640 at most
NO_END = {"logit_bias": {str(token): -100 for token in range(503, 512)}}  # no special token


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    deep = tmp_path_factory.mktemp("spoken") / "longer-than-a-socket-may-be-named" / ("d" * 60)
    deep.mkdir(parents=True)
    daemon = RealDaemon(deep)
    kept = {"every_steps": 20, "keep_every": 60}
    daemon.client.create_run({"name": "talker", **TINY, "checkpoint": kept})
    daemon.until_state("talker", "completed")
    yield daemon
    daemon.end()


@pytest.fixture
def client(daemon: RealDaemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def servers(daemon: RealDaemon) -> list[JobView]:
    return [job for job in daemon.client.jobs(limit=100).data if job.kind == "serve"]


def pid_of(daemon: RealDaemon, job: str) -> int:
    lock = daemon.data_dir / "jobs" / job / "lock"
    return int(json.loads(lock.read_text())["pid"])


def until_over(daemon: RealDaemon, job: str) -> JobView:
    deadline = time.monotonic() + 60
    while (seen := daemon.client.job(job)).state in ("queued", "running"):
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    return seen


def test_openais_client_lists_models_and_gets_text(daemon, client):
    names = [model.id for model in client.models.list()]
    assert names[0] == "talker@120"
    assert client.models.retrieve("talker@60").id == "talker@60"
    made = client.completions.create(
        model="talker", prompt=["def ", "import "], n=2, max_tokens=12, logprobs=2, seed=1,
        stop=["\x00"], extra_body={"top_k": 50},
    )  # fmt: skip
    assert made.model == "talker@120"
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.usage is not None
    assert made.usage.completion_tokens <= 48
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert all(value <= 0 for value in logprobs.token_logprobs)


def test_greedy_is_what_a_sampling_job_writes(daemon, client):
    asked = daemon.client.sample("talker", {"prompts": ["def "], "max_tokens": 40})
    done = until_over(daemon, asked.id)
    assert done.result is not None
    told = client.completions.create(model="talker", prompt="def ", max_tokens=40, temperature=0)
    assert told.choices[0].text == done.result["samples"][0]["text"]


def test_openais_client_hears_a_stream_and_refusals(daemon, client):
    ask: dict[str, Any] = {"model": "talker", "prompt": "def ", "max_tokens": 30, "seed": 3}
    whole = client.completions.create(**ask)
    parts = list(
        client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert parts[-1].usage == whole.usage
    with pytest.raises(openai.NotFoundError, match="no run 'nobody'") as missing:
        client.completions.create(model="nobody", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError, match="no token 600") as wrong:
        client.completions.create(model="talker", prompt=[600])
    assert wrong.value.param == "prompt"


def test_a_run_that_trains_can_be_talked_to_and_trains_on(daemon, client):
    endless = {**TINY, "horizon": {"steps": 100_000}, "evaluate": {"bpb_every": None}}
    daemon.client.create_run({"name": "busy", **endless, "checkpoint": {"every_steps": 20}})
    daemon.until("busy", lambda now: now.last_checkpoint is not None)
    made = client.completions.create(model="busy", prompt="def ", max_tokens=5)
    assert made.model.startswith("busy@")
    now = daemon.client.progress("busy")
    assert (now.state, now.attempt) == ("running", 1)
    daemon.until("busy", lambda later: later.step > now.step)
    daemon.client.cancel("busy")
    daemon.until_state("busy", "cancelled")


def test_one_process_serves_and_short_orders_do_not_wait_for_long_ones(daemon, client):
    client.completions.create(model="talker", prompt="x", max_tokens=1)
    with client.completions.create(
        model="talker", prompt="def ", stream=True, extra_body=NO_END, n=50, **FOREVER
    ) as long:
        next(iter(long))
        began = time.monotonic()
        short = client.completions.create(model="talker@60", prompt="def ", max_tokens=3)
        assert short.model == "talker@60"
        assert time.monotonic() - began < 10
        assert next(iter(long)).choices[0].finish_reason is None
    assert len([job for job in servers(daemon) if job.state == "running"]) == 1


def test_killed_in_the_middle_it_is_said_and_the_next_request_is_served(daemon, client):
    stream = client.completions.create(
        model="talker", prompt="def ", stream=True, extra_body=NO_END, n=50, **FOREVER
    )
    next(iter(stream))
    (serving,) = [job for job in servers(daemon) if job.state == "running"]
    os.kill(pid_of(daemon, serving.id), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="before the text was complete"):
        list(stream)
    assert until_over(daemon, serving.id).state == "failed"
    assert client.completions.create(model="talker", prompt="x", max_tokens=2).usage is not None


def test_cancelled_it_ends_and_leaves_no_socket(daemon, client):
    client.completions.create(model="talker", prompt="x", max_tokens=1)
    (serving,) = [job for job in servers(daemon) if job.state == "running"]
    daemon.client.cancel_job(serving.id)
    assert until_over(daemon, serving.id).state == "cancelled"
    assert not (daemon.data_dir / "jobs" / serving.id / "serve.sock").exists()


def test_a_damaged_checkpoint_is_refused_and_the_others_are_served(daemon, client):
    (found,) = [c for c in daemon.client.checkpoints("talker") if c.step == 60]
    path = Path(daemon.client.run("talker").directory) / "checkpoints" / found.name
    weights = path / "model.safetensors"
    kept = weights.read_bytes()
    client.completions.create(model="talker", prompt="x", max_tokens=1)
    (serving,) = [job for job in servers(daemon) if job.state == "running"]
    weights.chmod(0o600)
    weights.write_bytes(kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:])
    with pytest.raises(openai.InternalServerError, match=r"model\.safetensors"):
        client.completions.create(model="talker@60", prompt="x", max_tokens=1)
    weights.write_bytes(kept)
    assert client.completions.create(model="talker@60", prompt="x", max_tokens=1).choices
    assert daemon.client.job(serving.id).state == "running"


def test_without_its_daemon_it_ends_and_the_next_daemon_starts_its_own(daemon, client):
    client.completions.create(model="talker", prompt="x", max_tokens=1)
    (serving,) = [job for job in servers(daemon) if job.state == "running"]
    pid = pid_of(daemon, serving.id)
    broken = threading.Event()

    def listen() -> None:
        try:
            list(client.completions.create(model="talker", prompt="def ", stream=True,
                                           extra_body=NO_END, n=50, **FOREVER))  # fmt: skip
        except (openai.APIError, httpx.TransportError):
            broken.set()

    listener = threading.Thread(target=listen)
    listener.start()
    daemon.kill()
    listener.join(30)
    assert broken.is_set()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    daemon.start()
    assert until_over(daemon, serving.id).state == "completed"
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as again:
        assert again.completions.create(model="talker", prompt="x", max_tokens=2).choices
    assert len(servers(daemon)) >= 2


def test_it_ends_when_nobody_asks(daemon):
    """With half a second instead of ten minutes."""
    for job in servers(daemon):
        daemon.client.cancel_job(job.id)
        until_over(daemon, job.id)
    db = Database.open(Settings(data_dir=daemon.data_dir))
    with db.write() as session:
        session.add(
            rows.job(
                id="job_idle", kind="serve", where="cpu", state="queued", token="t" * 32,
                params={"idle_seconds": 0.5}, created_at=time.time(),
            )
        )  # fmt: skip
    db.close()
    ended = until_over(daemon, "job_idle")
    assert ended.state == "completed"
    assert ended.result == {"completions": 0, "tokens": 0}
