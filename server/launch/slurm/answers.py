"""Parses the output of squeue and sacct, and maps the end of a job to a reason. Pure.

For Slurm 22.05 to 25.05: fields are requested by name and separated by `|`. The reason comes last,
as the only field that may contain any character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from server.launch.launcher import EngineEnding
from trainer.contract.reasons import Reason

SQUEUE_FIELDS = (
    "JobID", "Name", "State", "exit_code", "NodeList", "StartTime", "EndTime", "TimeLimit",
    "RestartCnt", "Reason",
)  # fmt: skip
SACCT_FIELDS = ("JobID", "JobName", "State", "ExitCode", "NodeList", "Start", "End", "Timelimit")
WAITING = frozenset({
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT",
    "RESV_DEL_HOLD", "POWER_UP_NODE",
})  # fmt: skip
SUSPENDED = frozenset({"SUSPENDED", "STOPPED"})
ENDED = frozenset({
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY",
    "BOOT_FAIL", "DEADLINE", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL",
})  # fmt: skip
# Slurm sends the signal of a time limit up to a minute early.
EARLY_SECONDS = 75.0
# sbatch errors that are transient; all others concern the job itself.
_LATER = re.compile(
    r"unable to contact|timed? ?out|zero bytes|connection refused|temporarily|try again|retry"
    r"|submit limit|job limit|backup controller|communication|controller .*(start|busy)"
    r"|resource temporarily|job/step already completing|stale|address to controller",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class JobRow:
    """A job as reported by Slurm. exit_status: as of wait(2). Times: seconds since the epoch.
    restarts: number of requeues."""

    job: str
    name: str
    state: str
    exit_status: int | None = None
    nodes: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    limit: str = ""
    restarts: int = 0
    reason: str = ""

    @property
    def is_requeued(self) -> bool:
        """True if the job was killed and requeued; the script of a requeued job exits."""
        return self.is_waiting and self.restarts > 0

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_suspended(self) -> bool:
        return self.state in SUSPENDED

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def exit_code(self) -> int | None:
        """Exit code; negative: the number of the signal. None while the job runs."""
        if self.exit_status is None or not self.has_ended:
            return None
        signal, code = self.exit_status & 0x7F, self.exit_status >> 8
        return -signal if signal else code


def parse_squeue(text: str) -> list[JobRow]:
    """Parse `squeue -h -O` with SQUEUE_FIELDS; malformed lines are skipped."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", len(SQUEUE_FIELDS) - 1)]
        if len(cells) != len(SQUEUE_FIELDS) or not cells[0]:
            continue
        job, name, state, status, nodes, start, end, limit, restarts, reason = cells
        found.append(
            JobRow(
                job, name, _state(state), _number(status), _text(nodes), _time(start), _time(end),
                limit, _number(restarts) or 0, _text(reason.rstrip("|")),
            )
        )  # fmt: skip
    return found


def parse_sacct(text: str) -> list[JobRow]:
    """Parse `sacct -n -P -X` with SACCT_FIELDS; malformed lines are skipped."""
    found = []
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != len(SACCT_FIELDS) or not cells[0]:
            continue
        job, name, state, code, nodes, start, end, limit = cells
        found.append(
            JobRow(
                job, name, _state(state), _status(code), _text(nodes), _time(start), _time(end),
                limit,
            )
        )  # fmt: skip
    return found


def parse_submitted(text: str) -> str | None:
    """Parse the job id in the output of `sbatch --parsable`: `1234` or `1234;cluster`."""
    match = re.fullmatch(r"(\d+)(?:;\S*)?", text.strip().splitlines()[-1] if text.strip() else "")
    return match[1] if match else None


def may_pass(text: str) -> bool:
    """True if the error of a Slurm command is transient, so that a retry may succeed."""
    return _LATER.search(text) is not None


def one_line(text: str) -> str:
    """Errors of a command in one line, without the command's name before each."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))[:500]


def pending_words(row: JobRow) -> str:
    """Sentence with Slurm's reason for a waiting job."""
    if row.is_suspended:
        return f"Slurm job {row.job} is suspended by the cluster."
    reason = row.reason.strip("()")
    why = f": {reason}" if reason and reason != "None" else ""
    return f"Slurm job {row.job} is {row.state.lower().replace('_', ' ')}{why}."


def ending(row: JobRow, save_seconds: float, *, has_begun: bool) -> EngineEnding | None:
    """Reason for the end of a job; None if Slurm reports only an exit code.

    has_begun: True if the trainer has written to its outbox.
    """
    job, on = f"Slurm job {row.job}", f" on {row.nodes}" if row.nodes else ""
    match row.state:
        case "TIMEOUT":
            return EngineEnding(Reason.time_limit, f"{job} reached its time limit of {row.limit}")
        case "PREEMPTED":
            words = f"{job} was preempted by a job of higher priority{on}"
            return EngineEnding(Reason.preempted, words)
        case "NODE_FAIL" | "BOOT_FAIL" | "LAUNCH_FAILED":
            return EngineEnding(Reason.node_failed, f"a node of {job} failed{on}")
        case "OUT_OF_MEMORY":
            words = f"{job} was killed for exceeding its memory request{on}"
            return EngineEnding(Reason.host_out_of_memory, words)
        case "DEADLINE":
            return EngineEnding(Reason.engine_refused, f"{job} missed its deadline")
        case "CANCELLED" | "REVOKED":
            where = on if has_begun else " before it started"
            return EngineEnding(Reason.engine_cancelled, f"{job} was cancelled{where}")
    if row.restarts:
        is_held = row.state == "REQUEUE_HOLD" or "Held" in row.reason
        reason = Reason.engine_cancelled if is_held else Reason.preempted
        return EngineEnding(reason, f"{job} was requeued by the cluster" + " and held" * is_held)
    if _ended_by_the_limit(row, save_seconds):
        words = f"{job} ended at its time limit of {row.limit}"
        return EngineEnding(Reason.time_limit, words)
    return None


def _ended_by_the_limit(row: JobRow, save_seconds: float) -> bool:
    limit = _limit_seconds(row.limit)
    if limit is None or row.started_at is None or row.ended_at is None:
        return False
    return row.ended_at - row.started_at >= limit - save_seconds - EARLY_SECONDS


def _limit_seconds(text: str) -> int | None:
    """Parse a time limit: M:SS, H:MM:SS or D-HH:MM:SS. None for a word, which means no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _state(text: str) -> str:
    """Base state: sacct prints `CANCELLED by 1000`, squeue several joined by commas."""
    return re.split(r"[ ,+]", text.strip().upper(), maxsplit=1)[0]


def _text(text: str) -> str:
    text = text.strip()
    return "" if text in ("N/A", "None assigned", "(null)", "Unknown") else text


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _status(text: str) -> int | None:
    """Parse sacct's `code:signal` into a status as of wait(2)."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    return int(match[1]) << 8 | int(match[2]) if match else None


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
