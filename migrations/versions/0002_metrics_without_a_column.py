"""Points keep metrics that have no column of their own.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # a plain ADD COLUMN: it does not rewrite the table, which may hold millions of rows
    op.execute(sa.text("ALTER TABLE points ADD COLUMN more JSON"))


def downgrade() -> None:
    op.execute(sa.text("ALTER TABLE points DROP COLUMN more"))
