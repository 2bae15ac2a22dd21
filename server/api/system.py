"""Routes of the daemon and its machine: health, devices, disk, versions, Prometheus."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request
from sqlalchemy import select, text
from starlette.responses import Response

from server.api.deps import Conf, Db, StrictRoute
from server.api.openapi import problems
from server.database import tables
from server.database.db import Database
from server.errors import Busy
from server.machine import devices
from server.machine import disk as machine_disk
from server.machine.devices import Device
from server.machine.readings import DeviceReading, Readings, process_name
from server.schemas.system import DeviceView, PeakFlops, SystemView
from server.token_proof import CHALLENGE_HEADER, PROOF_HEADER
from trainer.contract import units
from trainer.contract.peaks import known_peak

router = APIRouter(tags=["system"], route_class=StrictRoute)
PACKAGES = ("torch", "numpy", "fastapi", "uvicorn", "sqlalchemy", "pydantic", "prometheus-client")
LOW_DISK_BYTES = 5_000_000_000
OTHERS = "others"


@router.get("/healthz")
def healthz(request: Request, response: Response) -> dict[str, str]:
    """Liveness of the process.

    If a token is required, the response to a `Traind-Challenge` has a `Traind-Proof`: proof that
    this daemon knows the token, before a client proves that it does.
    """
    tokens, asked = request.app.state.policy.tokens, request.headers.get(CHALLENGE_HEADER)
    if tokens is not None and asked is not None and (proof := tokens.prove(asked)) is not None:
        response.headers[PROOF_HEADER] = proof
    return {"status": "ok"}


@router.get("/readyz", responses=problems(503))
def readyz(request: Request, db: Db, conf: Conf) -> dict[str, str]:
    """Readiness to serve requests.

    The database answers, the supervisor is alive, and the disk has room for what a request
    writes."""
    with db.read() as session:
        session.execute(text("SELECT 1"))
    supervisor = getattr(request.app.state, "supervisor", None)
    if supervisor is not None and not supervisor.is_alive:
        raise Busy("The supervisor is not running.", headers={"Retry-After": "1"})
    disk = machine_disk.space(conf.paths.root)
    if disk.is_full:
        raise Busy(
            f"The disk is full: {units.num_bytes(disk.free)} left in {conf.paths.root}. "
            "Runs wait for room.",
            hint="Free some space there; everything then continues by itself.",
            headers={"Retry-After": "5"},
        )
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request, db: Db) -> Response:
    """Metrics in the text format of Prometheus."""
    content = request.app.state.metrics.scrape(db, time.time())
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/system")
def system(request: Request, db: Db, conf: Conf) -> SystemView:
    """The daemon's machine: devices, VRAM by owner, disk, versions, peak FLOP/s and its source."""
    disk = machine_disk.space(conf.paths.root)
    notices = getattr(request.app.state, "notices", None)
    undelivered = notices.problems(time.time()) if notices is not None else []
    around = getattr(request.app.state, "scheduler_inputs", None)
    return SystemView(
        version=_version("traind") or "?",
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        sqlite={"version": db.library.version, "module": db.library.name},
        devices=_devices(db, request.app.state.readings),
        data_dir=str(conf.paths.root),
        disk_total_bytes=disk.total,
        disk_free_bytes=disk.free,
        disk_is_full=disk.is_full,
        database_bytes=db.size_bytes,
        backups=[path.name for path in db.backups()],
        warnings=[
            *db.warnings,
            *_backup_warning(db),
            *_disk_warning(disk.free),
            *_gpu_warning(),
            *undelivered,
            *(around.problems() if around is not None else ()),
        ],
        uptime_seconds=time.monotonic() - request.app.state.started_monotonic,
        auth="token" if request.app.state.policy.tokens is not None else "none",
    )


def _backup_warning(db: Database) -> list[str]:
    return [db.backup_problem] if db.backup_problem else []


def _gpu_warning() -> list[str]:
    why = devices.unusable_gpu()
    return (
        [f"runs are trained on the CPU: this machine's GPU cannot be used ({why})"] if why else []
    )


def _devices(db: Database, readings: Readings) -> list[DeviceView]:
    running = _running(db)
    return [_view(device, readings, running) for device in devices.discover()]


def _view(device: Device, readings: Readings, running: list[_Running]) -> DeviceView:
    now, peak = readings.of(device.uuid), known_peak(device.name)
    here = next((one for one in running if one.device == device.device), None)
    return DeviceView(
        device=device.device,
        name=device.name,
        memory_bytes=device.memory_bytes,
        memory_used_bytes=now.memory_used_bytes,
        memory_by_owner=_memory_by_owner(now, running, here),
        utilisation=now.utilisation,
        power_watts=now.power_watts,
        temperature_celsius=now.temperature_celsius,
        peak_flops=PeakFlops(value=peak.value, source=peak.source) if peak else None,
        run=here.run if here else None,
    )


def _memory_by_owner(
    now: DeviceReading, running: list[_Running], here: _Running | None
) -> dict[str, int]:
    """Device memory by run or process, in bytes. In a container NVIDIA's library lists processes by
    the host's pids, or none: the run on this device then counts with what it reports, and the rest
    as others'."""
    if here and here.reserved_bytes and here.pid not in now.holders:
        rest = (now.memory_used_bytes or 0) - here.reserved_bytes
        return {here.run: here.reserved_bytes, **({OTHERS: rest} if rest > 0 else {})}
    names = {one.pid: one.run for one in running}
    by_owner: dict[str, int] = {}
    for pid, size in now.holders.items():
        owner = names.get(pid) or process_name(pid)
        by_owner[owner] = by_owner.get(owner, 0) + size
    return by_owner


@dataclass(frozen=True)
class _Running:
    """A running attempt. reserved_bytes: device memory, as its last step reported."""

    pid: int | None
    device: str
    run: str
    reserved_bytes: int | None


def _running(db: Database) -> list[_Running]:
    attempt, run, execution = tables.Attempt, tables.Run, tables.Execution
    query = (
        select(execution.handle["pid"].as_integer(), attempt.device, run.name, run.progress)
        .join(attempt, attempt.execution_id == execution.id)
        .join(run, run.id == attempt.run_id)
        .where(
            execution.ended_at.is_(None),
            attempt.number > 0,
            execution.handle["engine"].as_string().is_(None),  # not on a cluster,
        )
    )
    with db.read() as session:
        return [
            _Running(pid, device, name, (progress or {}).get("vram_reserved_bytes"))
            for pid, device, name, progress in session.execute(query)
        ]


def _disk_warning(free: int) -> list[str]:
    return [f"Disk almost full: {units.num_bytes(free)} left"] if free < LOW_DISK_BYTES else []


@cache
def _version(package: str) -> str | None:
    """The version at the first call: an upgrade on disk does not change the running process."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
