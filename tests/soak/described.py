"""OpenAPI: schemathesis over traind's API document, in all its phases, against a real socket.

No 5xx, no undocumented status, no answer that violates its schema. The server counts the answers,
so that those hidden by the client's library are counted too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.soak.counts import Counts

ROOT = Path(__file__).parents[2]
PHASES = ("examples", "coverage", "fuzzing", "stateful")
LONG_SECONDS = 300.0
WHOLE_SECONDS = 100.0  # about what the first two phases take in whole
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
    "allow_header_conformance", "ensure_resource_availability",
)  # fmt: skip


def run(budget: float, seed: int) -> Counts:
    counts = Counts("openapi", seed)
    with tempfile.TemporaryDirectory(prefix="soak-openapi-") as folder:
        with _served(Path(folder)) as (told, answers):
            for phases, seconds in _shares(budget):
                report = Path(folder) / f"{phases[0]}.ndjson"
                _ask(told, report, phases, seconds, seed, counts)
                for phase, number in _requests(report, counts).items():
                    counts.add(f"in its phase {phase}", number)
        counts.add("schemathesis requests", sum(answers.values()))
        wrong = sum(number for status, number in answers.items() if int(status) >= 500)
        counts.add("answers 5xx", wrong)
        counts.expect(not wrong, f"answers by status: {dict(answers)}")
        counts.say(f"answers {dict(sorted(answers.items()))}")
    for phase in PHASES:
        counts.expect(counts.done[f"in its phase {phase}"], f"phase {phase} made no request")
    return counts


def _shares(budget: float) -> list[tuple[tuple[str, ...], float | None]]:
    """Phases and their seconds: with enough time the first two run to their end, which does not
    depend on the seed, and the others share the rest."""
    if budget < LONG_SECONDS:
        return [(PHASES, budget)]
    return [(PHASES[:2], None), (PHASES[2:], budget - WHOLE_SECONDS)]


@contextmanager
def _served(folder: Path) -> Iterator[tuple[dict[str, Any], Counter[str]]]:
    """The app's description of itself; counts of answers by status, known when it has ended."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="soak-openapi-", dir=memory if memory.is_dir() else folder
    ) as data:
        command = [sys.executable, "-m", "tests.soak.described_app", data]
        served = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert served.stdin is not None
        assert served.stdout is not None
        answers: Counter[str] = Counter()
        try:
            yield json.loads(served.stdout.readline()), answers
        finally:
            served.stdin.close()
            answers.update(json.loads(served.stdout.readline() or "{}"))
            served.wait(timeout=30)
            served.stdout.close()


def _ask(
    told: dict[str, Any],
    report: Path,
    phases: tuple[str, ...],
    seconds: float | None,
    seed: int,
    counts: Counts,
) -> None:
    tool = Path(sys.executable).with_name("schemathesis")
    command = [
        str(tool), "run", f"http://127.0.0.1:{told['port']}/openapi.json",
        "--phases", ",".join(phases), "--checks", ",".join(CHECKS), "--seed", str(seed),
        *(["--max-time", str(max(10, round(seconds)))] if seconds is not None else []),
        "--workers", "1", "--no-shrink", "--continue-on-failure", "--warnings", "off",
        "--suppress-health-check", "all", "--request-timeout", "30",
        "--report", "ndjson", "--report-ndjson-path", str(report),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.soak.schemathesis_hooks",
        "THERE": json.dumps(told["there"]),
        "THERE_SEED": str(seed),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        command, cwd=report.parent, env=environment, capture_output=True, text=True, check=False
    )
    counts.expect(done.returncode == 0, f"schemathesis: {done.stdout[-3000:]}{done.stderr[-500:]}")


def _requests(report: Path, counts: Counts) -> Counter[str]:
    """Number of requests of each phase; a failed check is a failure of the campaign, reported once
    for each operation."""
    requests: Counter[str] = Counter()
    told: set[tuple[str, str]] = set()
    for line in report.read_text().splitlines():
        ((kind, event),) = json.loads(line).items()
        if kind != "ScenarioFinished":
            continue
        recorder = event["recorder"]
        requests[event["phase"]] += len(recorder.get("interactions", {}))
        for case, checks in recorder.get("checks", {}).items():
            for check in checks:
                which = (check["name"], recorder["label"])
                if check["status"] != "success" and which not in told:
                    told.add(which)
                    asked = recorder["interactions"][case]["request"]
                    words = f"{asked['method']} {asked['uri']}: {check['name']}"
                    counts.fail(f"{words}: {json.dumps(check)[:300]}")
    return requests
