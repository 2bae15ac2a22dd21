"""Ways to break the program on purpose, for controls: a campaign must notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.database.db import Database
from server.ingestion import ingest
from trainer.contract import failpoint


def cursor_apart() -> None:
    """Commit the cursor in a transaction of its own, before the rows."""

    def commit(
        db: Database,
        table: type[Any],
        seen: Any,
        read: ingest._Read,
        act: Callable[[Any, Any], None],
    ) -> ingest.IngestResult:
        with db.write() as session:
            row = session.get_one(table, seen.id)
            row.outbox_seq, row.outbox_offset = read.batch.next_seq, read.batch.offset
            row.outbox_inode = read.inode
        failpoint.hit("ingest.apart")
        with db.write() as session:
            act(session, session.get_one(table, seen.id))
        return ingest.IngestResult(len(read.batch.records), read.more)

    ingest._commit = commit
