"""Typed Python client of the REST API: one method per endpoint; responses are models of
`server.schemas`. For completions use an OpenAI client.

with Client() as traind:
    run = traind.create_run({"name": "demo"})
    for message in traind.stream(run.name):
        print(message.data)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from server.client import stream as client_stream
from server.client.wire import (
    ApiError,
    BadAnswer,
    ClientError,
    NotProven,
    NotReachable,
    Wire,
    parse,
    quoted,
)
from server.schemas.catalog import Catalog
from server.schemas.checkpoints import CheckpointView
from server.schemas.evaluations import EvaluationView, SampleView
from server.schemas.events import EventView
from server.schemas.groups import GroupDetail, GroupSummary
from server.schemas.jobs import JobView
from server.schemas.metrics import MetricsAnswer
from server.schemas.page import Page
from server.schemas.phases import AttemptView, PhaseView
from server.schemas.plans import PlanAnswer
from server.schemas.policies import PlacePolicyAnswer
from server.schemas.progress import Progress, RankView
from server.schemas.queue import QueueView
from server.schemas.runs import ExtendAnswer, RunDetail, RunSummary
from server.schemas.system import SystemView

ReportFormat = Literal["markdown", "html", "json"]
READ_BYTES = 1_000_000
_REPORT_TYPES = {"markdown": "text/markdown", "html": "text/html", "json": "application/json"}
_METRICS_TYPES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}

__all__ = ["ApiError", "BadAnswer", "Client", "ClientError", "LogPart", "NotProven", "NotReachable"]


@dataclass(frozen=True)
class LogPart:
    """Complete lines of an attempt's log. next_offset: where the next read continues."""

    text: str
    attempt: int
    next_offset: int


class Client:
    """API client for one daemon. A context manager; not thread-safe.

    url: default TRAIND_URL, else http://127.0.0.1:8321. The token is read from `token_file`, else
    from the file in TRAIND_TOKEN_FILE, else (loopback only) from the data directory; never from
    argv.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token_file: Path | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        door: str = "client",
    ) -> None:
        self.wire = Wire(url, token_file, timeout_seconds, transport, door)
        self.url = self.wire.url

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.wire.http.close()

    # --- runs ------------------------------------------------------------------------------------

    def plan(self, body: Mapping[str, Any]) -> PlanAnswer:
        """Plan of a spec, or of {"run": …, "extend": {…}}. Creates nothing."""
        return self.wire.post("/plan", PlanAnswer, body, changes=False)

    def create_run(self, spec: Mapping[str, Any], *, key: str | None = None) -> RunDetail:
        return self.wire.post("/runs", RunDetail, spec, key=key)

    def list_runs(
        self,
        *,
        state: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        order: str | None = None,
    ) -> Page[RunSummary]:
        query = {"state": state, "after": after, "limit": limit, "order": order}
        return self.wire.get("/runs", Page[RunSummary], query)

    def runs(self, *, state: str | None = None) -> Iterator[RunSummary]:
        """Iterate over all runs, page by page."""
        after = None
        while True:
            page = self.list_runs(state=state, after=after, limit=100)
            yield from page.data
            if not page.has_more or page.next is None:
                return
            after = page.next

    def run(self, run: str) -> RunDetail:
        return self.wire.get(_run(run), RunDetail)

    def queue(self) -> QueueView:
        """Scheduler queue: the run on each device, the waiting runs with reason and end of wait."""
        return self.wire.get("/queue", QueueView)

    def policy(self, device: str) -> PlacePolicyAnswer:
        """Policy of a device: hours, programs that runs yield to, power limits."""
        return self.wire.get(f"/devices/{device}/policy", PlacePolicyAnswer)

    def put_policy(self, device: str, policy: Mapping[str, Any]) -> PlacePolicyAnswer:
        return self.wire.put(f"/devices/{device}/policy", PlacePolicyAnswer, policy)

    def create_group(self, ask: Mapping[str, Any], *, key: str | None = None) -> GroupDetail:
        """Create a group: the runs of one spec and its variations, all or none."""
        return self.wire.post("/groups", GroupDetail, ask, key=key)

    def list_groups(
        self, *, after: str | None = None, limit: int | None = None
    ) -> Page[GroupSummary]:
        query = {"after": after, "limit": limit}
        return self.wire.get("/groups", Page[GroupSummary], query)

    def group(
        self, group: str, *, baseline: str | None = None, next_depth: int | None = None
    ) -> GroupDetail:
        """Group with members, noise, gains, multipliers and fits. baseline: another group."""
        query = {"baseline": baseline, "next_depth": next_depth}
        return self.wire.get(f"/groups/{quoted(group)}", GroupDetail, query)

    def cancel_group(self, group: str, *, key: str | None = None) -> GroupDetail:
        path = f"/groups/{quoted(group)}/cancel"
        return self.wire.post(path, GroupDetail, key=key)

    def delete_group(self, group: str, *, runs: bool = False) -> None:
        """Delete the group. runs: its runs too."""
        query = {"runs": "true"} if runs else None
        self.wire.request("DELETE", f"/groups/{quoted(group)}", query=query)

    def patch_run(self, run: str, changes: Mapping[str, Any]) -> RunDetail:
        return self.wire.patch(_run(run), RunDetail, changes)

    def delete_run(self, run: str) -> None:
        self.wire.delete(_run(run))

    def start(self, run: str, *, key: str | None = None) -> RunDetail:
        return self.wire.post(_run(run, "start"), RunDetail, key=key)

    def pause(self, run: str, *, key: str | None = None) -> RunDetail:
        return self.wire.post(_run(run, "pause"), RunDetail, key=key)

    def resume(
        self,
        run: str,
        *,
        overrides: Mapping[str, Any] | None = None,
        recovery: Mapping[str, Any] | None = None,
        place: Mapping[str, Any] | Literal["local"] | None = None,
        key: str | None = None,
    ) -> RunDetail:
        """Resume a run. place: a cluster, or "local" for this machine; None keeps the place."""
        given = {"overrides": overrides, "recovery": recovery, "place": place}
        body = {name: value for name, value in given.items() if value}
        if place == "local":
            body["place"] = None
        return self.wire.post(_run(run, "resume"), RunDetail, body or None, key=key)

    def cancel(self, run: str, *, key: str | None = None) -> RunDetail:
        return self.wire.post(_run(run, "cancel"), RunDetail, key=key)

    def extend(
        self, run: str, ask: Mapping[str, Any], *, dry_run: bool = False, key: str | None = None
    ) -> ExtendAnswer:
        """Extend a run by a phase. dry_run: return the preview, change nothing."""
        return self.wire.post(
            _run(run, "extend"),
            ExtendAnswer,
            ask,
            query={"dry_run": "true"} if dry_run else None,
            key=key,
            changes=not dry_run,
        )

    def extend_picture(
        self, run: str, ask: Mapping[str, Any], media: Literal["image/svg+xml", "image/png"]
    ) -> bytes:
        """Preview of an extension as an image. Raises ApiError `not-acceptable` if the daemon
        cannot render PNG."""
        query = {"dry_run": "true"}
        return self.wire.request(
            "POST", _run(run, "extend"), ask, query=query, accept=media
        ).content

    # --- parts of a run --------------------------------------------------------------------------

    def progress(self, run: str) -> Progress:
        return self.wire.get(_run(run, "progress"), Progress)

    def phases(self, run: str) -> list[PhaseView]:
        return self._whole(_run(run, "phases"), PhaseView)

    def attempts(self, run: str) -> list[AttemptView]:
        return self._whole(_run(run, "attempts"), AttemptView)

    def ranks(self, run: str) -> list[RankView]:
        """Ranks: the processes of a run on several devices."""
        return self._whole(_run(run, "ranks"), RankView)

    def checkpoints(self, run: str, *, superseded: bool = False) -> list[CheckpointView]:
        """Checkpoints of the current lineage. superseded: also those a later attempt replaced."""
        return self._whole(_run(run, "checkpoints"), CheckpointView, superseded)

    def evaluations(self, run: str, *, superseded: bool = False) -> list[EvaluationView]:
        return self._whole(_run(run, "evaluations"), EvaluationView, superseded)

    def samples(self, run: str, *, superseded: bool = False) -> list[SampleView]:
        return self._whole(_run(run, "samples"), SampleView, superseded)

    def metrics(
        self,
        run: str,
        *,
        keys: list[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> MetricsAnswer:
        query = _metrics_query(keys, from_step, to_step, max_points)
        return self.wire.get(_run(run, "metrics"), MetricsAnswer, query)

    def metrics_file(
        self,
        run: str,
        form: Literal["csv", "parquet"],
        *,
        keys: list[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> bytes:
        query = _metrics_query(keys, from_step, to_step, max_points)
        return self.wire.raw(_run(run, "metrics"), _METRICS_TYPES[form], query).content

    def events(
        self,
        run: str | None = None,
        *,
        after: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> Page[EventView]:
        """One page of events in order. newest: the last page instead of the first."""
        query = {"after": after, "limit": limit, "newest": "true" if newest else None}
        return self.wire.get(_events(run), Page[EventView], query)

    def stream(
        self,
        run: str | None = None,
        *,
        after: int | None = None,
        on_connection: client_stream.OnConnection | None = None,
        give_up_seconds: float | None = None,
    ) -> Iterator[client_stream.Message]:
        """Stream events without end; reconnects after the last event when the connection is lost.

        after: id of the last event already seen. Raises ApiError if the daemon refuses the request,
        NotReachable after `give_up_seconds` without a connection (None: never).
        """
        return client_stream.follow(
            self.wire.http,
            "/v1" + _events(run),
            after=after,
            on_connection=on_connection,
            give_up_seconds=give_up_seconds,
            refuse=self.wire.refusal,
            unreachable=lambda cause: NotReachable(self.wire.url, cause),
        )

    def logs(
        self,
        run: str,
        *,
        attempt: int | None = None,
        tail: int | None = None,
        offset: int | None = None,
    ) -> LogPart:
        """Log of an attempt: its last lines, or what follows `offset`, a LogPart.next_offset."""
        query = {"attempt": attempt, "tail": tail, "offset": offset}
        answer = self.wire.raw(_run(run, "logs"), "text/plain", query)
        try:
            found, behind = answer.headers["Traind-Attempt"], answer.headers["Traind-Next-Offset"]
            return LogPart(answer.text, int(found), int(behind))
        except (KeyError, ValueError) as error:
            raise BadAnswer(
                "the log response lacks Traind-Attempt or Traind-Next-Offset"
            ) from error

    def report(self, run: str, form: ReportFormat = "markdown") -> str:
        return self.wire.raw(_run(run, "report"), _REPORT_TYPES[form]).text

    # --- checkpoints and jobs --------------------------------------------------------------------

    def save_checkpoint(self, run: str, *, pin: bool = False, key: str | None = None) -> JobView:
        """Save a checkpoint of the running run at its next step boundary."""
        return self.wire.post(_run(run, "checkpoints"), JobView, {"pin": pin}, key=key)

    def pin_checkpoint(self, run: str, checkpoint: str, pinned: bool = True) -> CheckpointView:
        path = _run(run, "checkpoints", checkpoint)
        return self.wire.patch(path, CheckpointView, {"pinned": pinned})

    def delete_checkpoint(self, run: str, checkpoint: str) -> None:
        self.wire.delete(_run(run, "checkpoints", checkpoint))

    def download(self, run: str, checkpoint: str, name: str, to: Path) -> int:
        """Download one file of a checkpoint to `to`. Returns its size in bytes."""
        path = "/v1" + _run(run, "checkpoints", checkpoint, "files", name)
        with self.wire.http.stream("GET", path) as response:
            if response.is_error:
                response.read()
                raise self.wire.refusal(response)
            with to.open("wb") as file:
                return sum(file.write(chunk) for chunk in response.iter_bytes(READ_BYTES))

    def evaluate(self, run: str, ask: Mapping[str, Any], key: str | None = None) -> JobView:
        return self.wire.post(_run(run, "evaluations"), JobView, ask, key=key)

    def sample(self, run: str, ask: Mapping[str, Any], key: str | None = None) -> JobView:
        return self.wire.post(_run(run, "samples"), JobView, ask, key=key)

    def export(self, run: str, ask: Mapping[str, Any], key: str | None = None) -> JobView:
        return self.wire.post(_run(run, "exports"), JobView, ask, key=key)

    def audit(self, run: str, ask: Mapping[str, Any], key: str | None = None) -> JobView:
        return self.wire.post(_run(run, "audits"), JobView, ask, key=key)

    def import_run(self, ask: Mapping[str, Any], key: str | None = None) -> JobView:
        return self.wire.post("/imports", JobView, ask, key=key)

    def jobs(
        self,
        *,
        run: str | None = None,
        state: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> Page[JobView]:
        """One page of jobs, newest first."""
        query = {"run": run, "state": state, "after": after, "limit": limit}
        return self.wire.get("/jobs", Page[JobView], query)

    def job_log(self, job: str, tail: int = 200) -> str:
        """The last lines of the log of a job's process."""
        return self.wire.raw(f"/jobs/{quoted(job)}/logs", "text/plain", {"tail": tail}).text

    def job(self, job: str) -> JobView:
        return self.wire.get(f"/jobs/{quoted(job)}", JobView)

    def tokens(self, job: str) -> Iterator[client_stream.Message]:
        """Stream the text of a sampling job: `token` messages, then one `end`.

        Raises ApiError if the job has ended or streams no text. A lost connection ends the stream
        without `end`; the result of the job contains the full text.
        """
        with (
            suppress(httpx.TransportError),
            client_stream.connect(self.wire.http, f"/v1/jobs/{quoted(job)}/stream") as response,
        ):
            if response.is_error:
                response.read()
                raise self.wire.refusal(response)
            yield from client_stream.parse(client_stream.lines(response.iter_text()))

    def cancel_job(self, job: str) -> JobView:
        return parse(self.wire.delete(f"/jobs/{quoted(job)}"), JobView)

    # --- the daemon ------------------------------------------------------------------------------

    def system(self) -> SystemView:
        return self.wire.get("/system", SystemView)

    def catalog(self) -> Catalog:
        return self.wire.get("/catalog", Catalog)

    def is_ready(self) -> bool:
        """True if /readyz returns 200. Never raises."""
        try:
            return self.wire.http.get("/readyz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def _whole(self, path: str, item: Any, superseded: bool = False) -> list[Any]:
        """Items of a list endpoint without pagination."""
        query = {"superseded": "true"} if superseded else None
        return self.wire.get(path, Page[item], query).data


def _run(run: str, *rest: str) -> str:
    return "/runs/" + "/".join(quoted(part) for part in (run, *rest))


def _events(run: str | None) -> str:
    return "/events" if run is None else _run(run, "events")


def _metrics_query(
    keys: list[str] | None, from_step: int | None, to_step: int | None, max_points: int | None
) -> dict[str, Any]:
    return {
        "keys": ",".join(keys) if keys else None,
        "from_step": from_step,
        "to_step": to_step,
        "max_points": max_points,
    }
