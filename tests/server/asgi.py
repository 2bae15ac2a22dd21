"""The real app on a real database, called in-process: no daemon, no sockets, no supervisor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from server.api import app as api
from server.database.db import Database
from server.events.commit_notifier import Feed
from server.settings import Settings

BASE = "http://127.0.0.1:8321"


class Asgi:
    """A client of one app. Requests never leave the process."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.settings = Settings(data_dir=data_dir, **settings)
        self.db = Database.open(self.settings)
        self.feed = Feed()
        self.db.on_commit(self.feed.notify)
        self.app: FastAPI = api.make(self.settings)
        api.connect(self.app, self.db, self.feed)

    def request(self, method: str, url: str, **given: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
                return await client.request(method, url, **given)

        return asyncio.run(once())

    def get(self, url: str, **given: Any) -> httpx.Response:
        return self.request("GET", url, **given)

    def post(self, url: str, json: Any = None, **given: Any) -> httpx.Response:
        if json is not None:
            given["json"] = json
        return self.request("POST", url, **given)

    def create(self, name: str = "demo", **spec: Any) -> dict[str, Any]:
        answer = self.post("/v1/runs", {"name": name, "horizon": {"steps": 200}, **spec})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def move(self, name: str, state: str) -> None:
        """Put a run into a state, as the supervisor would."""
        from server.queries import run_views

        with self.db.write() as session:
            run_views.get_run(session, name).state = state

    def close(self) -> None:
        self.db.close()
