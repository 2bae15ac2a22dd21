"""Composition root of the daemon: builds the application from the settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from server import errors, file_permissions, lock, sd_notify, webhook_receivers
from server.api import app as api
from server.database.db import Database
from server.domain import run_deletion
from server.events import webhooks
from server.events.commit_notifier import Feed
from server.ingestion.worker import Worker
from server.machine import devices
from server.machine.xid_events import XidListener
from server.maintenance.housekeeping import HousekeepingThread
from server.scheduling.inputs import SchedulerInputsThread
from server.settings import Settings
from server.supervision.context import SupervisorContext
from server.supervision.startup import arrive
from server.supervision.supervisor import Supervisor

FIRST_TICK_SECONDS = 5.0  # running processes are adopted before the first request is served

log = logging.getLogger("traind")


def create_app(
    settings: Settings,
    db: Database | None = None,
    *,
    worker: Worker | None = None,
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The app with its lifespan: starts lock, database, supervisor; stops streams, supervisor,
    database.

    db: an open database, or None. worker: the ingestion process, or None. on_failure is called from
    the supervisor's thread when that thread fails: the daemon must then exit.
    Raises BindRefused, TokenUnusable; entering its lifespan raises Held, Refused.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with lock.held(settings):
            await run_in_threadpool(file_permissions.tighten, settings.paths.root)
            opened = db or await run_in_threadpool(Database.open, settings)
            await run_in_threadpool(_sweep, opened, settings)
            try:
                await run_in_threadpool(arrive, opened, settings.paths)
            except (
                OSError,
                errors.TraindError,
            ) as error:  # such as a full disk: one sentence, no traceback
                on_failure(lock.CannotServe.from_error(error))
                raise
            housekeeping_thread = HousekeepingThread(
                opened, settings.paths, settings.keep_jobs_days
            )
            feed = Feed()
            opened.on_commit(feed.notify)
            xids = XidListener()
            around = SchedulerInputsThread(opened, devices.PresentDevices(), settings.tariff)
            supervisor = Supervisor(
                SupervisorContext(
                    opened,
                    settings,
                    devices.PresentDevices(),
                    worker=worker,
                    xids=xids,
                    scheduler_inputs=around.seen,
                )
            )
            webhook_thread = webhooks.WebhookThread(
                opened, settings.paths.root, webhook_receivers.deliver
            )
            api.connect(app, opened, feed, supervisor, webhook_thread, around)
            webhook_thread.start()
            await run_in_threadpool(around.start)
            housekeeping_thread.start()
            xids.start()
            supervisor.start(on_failure)
            await run_in_threadpool(supervisor.wait_for_first_tick, FIRST_TICK_SECONDS)
            log.info("ready; data in %s", settings.paths.root)
            watchdog = asyncio.create_task(sd_notify.feed_watchdog(lambda: supervisor.is_alive))
            sd_notify.notify("READY=1")
            try:
                yield
            finally:
                sd_notify.notify("STOPPING=1")
                watchdog.cancel()
                api.end_streams(app)
                stop_trainers = settings.stop_trainers
                await run_in_threadpool(lambda: supervisor.stop(stop_trainers=stop_trainers))
                await run_in_threadpool(xids.stop)
                await run_in_threadpool(around.stop)
                await run_in_threadpool(webhook_thread.stop)
                await run_in_threadpool(housekeeping_thread.stop)
                await run_in_threadpool(opened.close)

    return api.make(settings, lifespan=life)


def _sweep(db: Database, settings: Settings) -> None:
    """Remove directories of deleted runs at startup. A failure does not prevent the start."""
    try:
        run_deletion.sweep(db, settings.paths)
    except OSError as error:
        log.warning("could not remove the directories of deleted runs: %s", error)
