"""All benchmarks, or the named ones: `python -m tests.bench [step packing …]`.

Each part is a separate process and prints lines. RESULTS.md keeps the latest of each part, with
device, versions and commit, below a table of the bars. Nothing here asserts a time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from tests.bench import bars

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PARTS = (
    "step", "memory", "deterministic", "head", "muon", "packing", "loader", "stall", "start",
    "reporting", "daemon", "serving", "seeing", "tunnel", "core", "ranks", "slurm", "turns",
    "ladder", "gpu",
)  # fmt: skip
BY_HAND = "## On the null GPU"  # the rest of the file does not belong to the benchmarks
_SECTION = re.compile(r"^## (\w+)\n", re.MULTILINE)


def main(names: list[str]) -> int:
    """Exit status 1 when a part failed."""
    unknown = set(names) - set(PARTS)
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
        return 2
    failed = False
    for name in names or PARTS:
        print(f"== {name}", flush=True)
        lines, status = run(name)
        failed |= status != 0
        record(name, lines if status == 0 else [f"failed: {lines[-1] if lines else 'no output'}"])
    print(table(_sections(RESULTS.read_text())))
    return int(failed)


def run(name: str) -> tuple[list[str], int]:
    """The lines a part printed and its exit status."""
    lines: list[str] = []
    command = [sys.executable, "-u", "-m", f"tests.bench.{name}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parents[1]
    ) as part:
        assert part.stdout is not None
        for line in part.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return [line for line in lines if line], part.returncode


def record(name: str, lines: list[str]) -> None:
    """Replace a part's earlier lines by the new ones, and rebuild the table."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    sections, by_hand = _sections(text), text.partition(f"\n{BY_HAND}")
    load = os.getloadavg()[0]
    where = (
        f"{time.strftime('%Y-%m-%d %H:%M')}, commit {_commit()}, {_cpu()}, {os.cpu_count()} cores, "
        f"load {load:.1f}, torch {metadata.version('torch')}"
    )
    sections[name] = f"{where}\n\n" + "".join(f"- {line}\n" for line in lines)
    body = "".join(f"\n## {n}\n\n{sections[n].strip()}\n" for n in PARTS if n in sections)
    RESULTS.write_text(f"{_HEAD}\n{table(sections)}\n{body}{''.join(by_hand[1:])}")


def table(sections: dict[str, str]) -> str:
    """The bars of every part, as a table."""
    rows = ["| part | what | measured | bar | |", "|---|---|---|---|---|"]
    for name in PARTS:
        for line in sections.get(name, "").splitlines():
            cells = bars.cells(line.removeprefix("- "))
            if cells:
                rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


_HEAD = """\
# Measured

`make bench` writes this file; `make bench PARTS="step stall"` renews single parts. Ratios are
medians of the plain reference's time over ours (or our bytes over its), taken in turns in one run;
a ratio read under a load of others' making is lower than one of a quiet machine.
"""


def _sections(text: str) -> dict[str, str]:
    parts = _SECTION.split(text.partition(f"\n{BY_HAND}")[0])
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
