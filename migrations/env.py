"""Alembic environment: the daemon passes its own connection, the command line opens one."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from server.database import migrate, sqlite, tables
from server.settings import Settings


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=tables.Base.metadata,
        transactional_ddl=True,  # the engine begins by itself, so SQLite's DDL is transactional
        render_as_batch=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    paths = Settings().paths
    migrate.check_place(paths)
    engine = sqlite.make_engine(sqlite.choose_library(), paths.database, role="migration")
    with engine.begin() as connection:
        run(connection)
    engine.dispose()
