"""Deliberate faults in the program, for controls: a campaign must detect each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.database.db import Database
from server.database.tables import Execution
from server.ingestion import ingest
from trainer.contract import failpoint


def cursor_apart() -> None:
    """Commit the cursor in a separate transaction, before the rows."""

    def commit(
        db: Database,
        seen: Execution,
        read: ingest._Read,
        act: Callable[[Any, ingest._Read], None],
    ) -> ingest.IngestResult:
        with db.write() as session:
            row = session.get_one(Execution, seen.id)
            row.outbox_seq, row.outbox_offset = read.batch.next_seq, read.batch.offset
            row.outbox_inode = read.inode
        failpoint.hit("ingest.apart")
        with db.write() as session:
            row = session.get_one(Execution, seen.id)
            act(ingest._KINDS[row.kind](session, row.id), read)
        return ingest.IngestResult(len(read.batch.records), read.more)

    ingest._commit = commit
