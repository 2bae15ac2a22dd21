"""All benchmarks, or the named ones: `python -m tests.bench [step packing …]`.

Each part is a process of its own and prints lines; they go into RESULTS.md with device, versions
and commit. Nothing here asserts a time: the bars are read from the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PARTS = ("packing", "loader", "head", "muon", "step", "memory", "stall", "core", "daemon", "start")
PART_SECONDS = 1800


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
    """Append what a part said, and where it said it."""
    if not RESULTS.exists():
        RESULTS.write_text("# Measured\n\nRatios are medians, ours against the plain reference.\n")
    load = os.getloadavg()[0]
    where = f"{_cpu()}, {os.cpu_count()} cores, load {load:.1f}, torch {metadata.version('torch')}"
    with RESULTS.open("a") as file:
        file.write(
            f"\n## {name}, {time.strftime('%Y-%m-%d %H:%M')}, commit {_commit()}\n\n{where}\n\n"
        )
        file.writelines(f"- {line}\n" for line in lines)


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
