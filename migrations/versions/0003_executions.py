"""Attempts and jobs refer to one table of executions; deadlines that nobody read are gone.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = (
    "kind, directory, launcher, place, token, handle, state, outcome, reason, message, log_tail, "
    "created_at, started_at, ended_at, stage, stage_since, stage_detail, stage_fraction, "
    "escalation, outbox_seq, outbox_offset, outbox_inode, outbox_problem"
)
_HANDLE = (
    "CASE WHEN boot_id IS NULL THEN '{}' WHEN pid IS NULL OR start_ticks IS NULL "
    "THEN json_object('boot_id', boot_id) "
    "ELSE json_object('boot_id', boot_id, 'pid', pid, 'start_ticks', start_ticks) END"
)
_OF_ATTEMPTS = f"""
INSERT INTO executions (id, {_COLUMNS})
SELECT id, 'attempt', 'runs/' || run_id || '/attempts/' || printf('%04d', number), 'local', device,
       token, {_HANDLE}, CASE WHEN drained THEN 'ended' ELSE 'running' END, outcome, reason,
       message, log_tail, created_at, started_at, ended_at, stage, stage_since, stage_detail,
       stage_fraction,
       CASE WHEN drained THEN 0
            ELSE (SELECT escalation FROM runs WHERE runs.id = attempts.run_id) END,
       outbox_seq, outbox_offset, outbox_inode, outbox_problem
FROM attempts
"""
_OF_JOBS = f"""
INSERT INTO executions (id, {_COLUMNS})
SELECT rowid + (SELECT coalesce(max(id), 0) FROM attempts), 'job', 'jobs/' || id, 'local',
       CASE "where" WHEN 'device' THEN coalesce(json_extract(params, '$.device'), 'device')
                    ELSE "where" END,
       token, {_HANDLE}, CASE WHEN state IN ('queued', 'running') THEN state ELSE 'ended' END,
       CASE WHEN state IN ('queued', 'running') THEN NULL ELSE state END, reason,
       message, NULL, created_at, started_at, ended_at, stage, NULL, stage_detail,
       fraction, escalation, outbox_seq, outbox_offset, outbox_inode, outbox_problem
FROM jobs
"""
_ATTEMPTS = (
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("run_id", sa.String(length=40), nullable=False),
    sa.Column("number", sa.Integer(), nullable=False),
    sa.Column("phase_index", sa.Integer(), nullable=False),
    sa.Column("device", sa.String(length=32), nullable=False),
    sa.Column("device_name", sa.String(length=128), nullable=True),
    sa.Column("peak_flops", sa.Float(), nullable=True),
    sa.Column("peak_source", sa.Text(), nullable=True),
    sa.Column("versions", sa.JSON(), nullable=False),
    sa.Column("fingerprint", sa.JSON(), nullable=False),
    sa.Column("start_step", sa.Integer(), nullable=True),
    sa.Column("last_step", sa.Integer(), nullable=True),
    sa.Column("lineage_limit", sa.Integer(), nullable=True),
    sa.Column("steps_done", sa.Integer(), nullable=False),
    sa.Column("steps_lost", sa.Integer(), nullable=False),
    sa.Column("exact_resume", sa.String(length=16), nullable=True),
)
_JOBS = (
    sa.Column("id", sa.String(length=40), nullable=False),
    sa.Column("run_id", sa.String(length=40), nullable=True),
    sa.Column("kind", sa.String(length=16), nullable=False),
    sa.Column("where", sa.String(length=8), nullable=False),
    sa.Column("params", sa.JSON(), nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("cancel_requested", sa.Boolean(), nullable=False),
)


def upgrade() -> None:
    op.create_table(
        "executions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("directory", sa.String(length=128), nullable=False),
        sa.Column("launcher", sa.String(length=16), nullable=False),
        sa.Column("place", sa.String(length=32), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("handle", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("stage_since", sa.Float(), nullable=True),
        sa.Column("stage_detail", sa.Text(), nullable=False),
        sa.Column("stage_fraction", sa.Float(), nullable=True),
        sa.Column("escalation", sa.Integer(), nullable=False),
        sa.Column("outbox_seq", sa.Integer(), nullable=False),
        sa.Column("outbox_offset", sa.Integer(), nullable=False),
        sa.Column("outbox_inode", sa.Integer(), nullable=True),
        sa.Column("outbox_problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("directory"),
    )
    op.create_index("ix_executions_state", "executions", ["state"])
    op.execute(sa.text(_OF_ATTEMPTS))
    op.execute(sa.text(_OF_JOBS))
    by_number = "'runs/' || run_id || '/attempts/' || printf('%04d', number)"
    _replace("attempts", _ATTEMPTS, by_number, sa.UniqueConstraint("run_id", "number"))
    _replace("jobs", _JOBS, "'jobs/' || jobs.id")
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("deadline")
        runs.drop_column("escalation")


def _replace(
    table: str, columns: tuple[sa.Column[Any], ...], directory: str, *more: sa.Constraint
) -> None:
    """The table anew with these columns and the execution of each row."""
    copy = f"_alembic_tmp_{table}"
    op.create_table(
        copy,
        *columns,
        sa.Column("execution_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["execution_id"], ["executions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        *more,
    )
    kept = ", ".join(f'"{column.name}"' for column in columns)
    execution = f"(SELECT e.id FROM executions AS e WHERE e.directory = {directory})"
    op.execute(
        sa.text(
            f"INSERT INTO {copy} ({kept}, execution_id) SELECT {kept}, {execution} FROM {table}"
        )
    )
    op.drop_table(table)
    op.rename_table(copy, table)
    op.create_index(f"ix_{table}_run_id", table, ["run_id"])
    op.create_index(f"ix_{table}_execution_id", table, ["execution_id"], unique=True)


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
