"""The FastAPI application: middleware, routes, error handlers, OpenAPI.

Layers, outermost first: counting, access, bodies, compression, HEAD, then FastAPI. Everything that
a request's headers and size decide is checked before a handler runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import (
    catalog,
    checkpoints,
    completions,
    docs,
    errors,
    events,
    groups,
    jobs,
    metrics,
    openapi,
    phases,
    plan,
    queue,
    reports,
    runs,
    session,
    system,
    web,
)
from server.api.stream_source import source_of
from server.database.db import Database
from server.database.migrate import version
from server.events.commit_notifier import Feed
from server.events.hub import Hub
from server.guard.access import Access, Policy, policy_for
from server.guard.bodies import Bodies
from server.guard.head_requests import HeadRequests
from server.machine.readings import Readings
from server.prometheus.scrape import Metrics
from server.settings import Settings

ROUTERS = (
    runs.router,
    phases.router,
    metrics.router,
    events.router,
    checkpoints.router,
    jobs.router,
    completions.router,
    plan.router,
    reports.router,
    session.router,
    system.router,
    catalog.router,
    queue.router,
    groups.router,
    docs.router,
    web.router,
)
DESCRIPTION = (
    "A training daemon: create a run, watch it, pause it, resume it, extend it. Times are unix "
    "seconds, sizes bytes. Errors are RFC 9457 problem documents."
)


def make(settings: Settings, lifespan: Callable[[FastAPI], Any] | None = None) -> FastAPI:
    """Build the app without its database, which `connect` adds. Raises BindRefused,
    TokenUnusable."""
    app = FastAPI(
        title="traind",
        version=version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.policy = policy_for(settings)
    app.state.metrics = Metrics(settings.paths.root)
    app.state.readings = Readings()
    app.state.started_monotonic = time.monotonic()
    app.state.routes = [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)]
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    openapi.install(app)
    _add_layers(app, settings, app.state.policy, app.state.metrics)
    return app


def connect(
    app: FastAPI,
    db: Database,
    feed: Feed,
    supervisor: Any = None,
    notices: Any = None,
    scheduler_inputs: Any = None,
) -> None:
    """Connect the app to its database and workers. Call before the first request."""
    app.state.db, app.state.feed, app.state.supervisor = db, feed, supervisor
    app.state.notices, app.state.scheduler_inputs = notices, scheduler_inputs
    app.state.stream = Hub(source_of(db), feed)
    app.state.token_streams, app.state.completions = set(), set()


def end_streams(app: FastAPI) -> None:
    """End every live stream with `bye`; call it first when stopping, from any thread."""
    stream: Hub | None = getattr(app.state, "stream", None)
    if stream is not None:
        stream.stop()


def _add_layers(app: FastAPI, settings: Settings, policy: Policy, counted: Metrics) -> None:
    app.add_middleware(HeadRequests)
    app.add_middleware(Compressed)
    app.add_middleware(Bodies, max_bytes=settings.max_body_bytes)
    app.add_middleware(Access, policy=policy)
    app.add_middleware(Counted, metrics=counted)


class Compressed:
    """Compresses large responses with gzip if the client accepts it; leaves live streams unchanged.

    Files of checkpoints and exports are sent uncompressed: they are large, hardly compress, and are
    requested in ranges.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._gzip = GZipMiddleware(app, minimum_size=1_000, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = scope["type"] == "http" and "/files/" in scope["path"]
        await (self._plain if is_file else self._gzip)(scope, receive, send)


class Counted:
    """Counts requests by route template, never by path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.observe(scope["method"], route, status, time.perf_counter() - began)
