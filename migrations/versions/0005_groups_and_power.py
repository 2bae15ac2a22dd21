"""Groups of runs; power limits and temperature ceilings of devices.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "groups",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_groups_created_at", "groups", ["created_at", "id"])
    op.create_table(
        "group_members",
        sa.Column(
            "run_id",
            sa.String(40),
            sa.ForeignKey("runs.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(
            "group_id",
            sa.String(40),
            sa.ForeignKey("groups.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=True),
        sa.Column("variant", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
    )
    op.create_index("ix_group_members_group_id", "group_members", ["group_id"])
    op.create_table(
        "power_limits",
        sa.Column("place", sa.String(32), primary_key=True),
        sa.Column("uuid", sa.String(64), nullable=False),
        sa.Column("watts_before", sa.Float(), nullable=False),
        sa.Column("watts", sa.Float(), nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
    )
    # a plain ADD COLUMN: the table is not rewritten; last, as the tables have it
    op.execute(sa.text("ALTER TABLE place_policies ADD COLUMN power JSON"))


def downgrade() -> None:
    op.execute(sa.text("ALTER TABLE place_policies DROP COLUMN power"))
    op.drop_table("power_limits")
    op.drop_table("group_members")
    op.drop_table("groups")
