"""RESULTS.md: one row for each campaign that ran, and the totals."""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.counts import Counts
from trainer.contract.durable import write_durably

PATH = Path(__file__).with_name("RESULTS.md")
HEAD = """# Fault counts

What `make soak` and `make soak-ci` did to this program, and how often it did not keep a promise.
Written by the campaigns themselves: every run appends its rows, the sums are made anew from them.
Every kill is printed with its seed and place while it runs; tests/test_soak_controls.py proves that
each campaign notices when something is wrong.
"""
COLUMNS = (
    "| Date (UTC) | Commit | Campaign | Seed | Counts | Longest | Failures |\n" + "|---" * 7 + "|"
)


def append(counts: Counts, path: Path = PATH) -> None:
    """Add the row of one campaign and recompute the totals."""
    rows = [*_rows(path), _row(counts)]
    write_durably(path, _page(rows).encode())


def _rows(path: Path) -> list[str]:
    if not path.exists():
        return []
    _, _, runs = path.read_text().partition("## Every run\n")
    return [line for line in runs.splitlines() if line.startswith("| 20")]


def _row(counts: Counts) -> str:
    done = ", ".join(f"{number:,} {what}" for what, number in counts.done.items())
    longest = ", ".join(f"{what} {value:.2f} s" for what, value in counts.worst.items())
    first = " ".join(counts.failures[0].replace("|", "/").split())[:120] if counts.failures else ""
    failures = f"{len(counts.failures)} ({first})" if first else "0"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    cells = (when, commit(), counts.campaign, str(counts.seed), done, longest, failures)
    return f"| {' | '.join(cells)} |"


def _page(rows: list[str]) -> str:
    sums = "\n".join(_sums(rows))
    columns = "| Campaign | Runs | Counts | Failures |\n|---|---|---|---|"
    return (
        f"{HEAD}\n## All runs together\n\n{columns}\n{sums}\n\n## Every run\n\n{COLUMNS}\n"
        + "\n".join(rows)
        + "\n"
    )


def _sums(rows: list[str]) -> list[str]:
    runs, done, failures = Counter(), defaultdict(Counter), Counter()
    for row in rows:
        _, _, _, campaign, _, said, _, failed, _ = (cell.strip() for cell in row.split("|"))
        runs[campaign] += 1
        failures[campaign] += int(failed.split()[0])
        for part in filter(None, _parts(said)):
            number, _, what = part.partition(" ")
            done[campaign][what] += int(number.replace(",", ""))
    return [
        f"| {name} | {runs[name]} | {_told(done[name])} | {failures[name]} |"
        for name in sorted(runs)
    ]


def _parts(said: str) -> list[str]:
    return said.split(", ")


def _told(done: Counter[str]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in done.items())


def commit() -> str:
    """The commit that ran, with a + if the program's files differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "server", "trainer")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PATH.parent), *arguments]
    if arguments[0] == "status":
        command = ["git", "-C", str(PATH.parents[2]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
