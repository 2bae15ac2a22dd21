"""Columns that were written and never read are dropped.

The hash of a step's batch stays in the attempt's journal, where an audit finds it.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# each with its type and what a downgrade fills in
_COLUMNS = (
    ("points", "batch_sha256", "VARCHAR(64)"),
    ("commands", "attempt_number", "INTEGER"),
    ("throughput", "unix_seconds", "FLOAT NOT NULL DEFAULT 0"),
    ("place_policies", "updated_at", "FLOAT NOT NULL DEFAULT 0"),
    ("power_limits", "set_at", "FLOAT NOT NULL DEFAULT 0"),
)


def upgrade() -> None:
    for table, column, _ in _COLUMNS:  # SQLite drops a column in place, without a copied table
        op.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))


def downgrade() -> None:
    for table, column, kind in _COLUMNS:
        op.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN {column} {kind}"))
