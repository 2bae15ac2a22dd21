"""Runs have a priority and hours that the queue is walked by; devices have a policy.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # plain ADD COLUMNs: the table is not rewritten
    op.execute(sa.text("ALTER TABLE runs ADD COLUMN queue_rank INTEGER NOT NULL DEFAULT 0"))
    op.execute(sa.text("ALTER TABLE runs ADD COLUMN hours TEXT NOT NULL DEFAULT ''"))
    op.create_index("ix_runs_queue", "runs", ["device", "hours", "queue_rank", "queue_position"])
    op.create_table(
        "place_policies",
        sa.Column("place", sa.String(32), primary_key=True),
        sa.Column("hours", sa.Text(), nullable=False),
        sa.Column("neighbours", sa.JSON(), nullable=True),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("place_policies")
    op.drop_index("ix_runs_queue", "runs")
    op.execute(sa.text("ALTER TABLE runs DROP COLUMN hours"))
    op.execute(sa.text("ALTER TABLE runs DROP COLUMN queue_rank"))
