"""`python -m tests.soak --seconds N --seed S [--campaign NAME …]`, or `--ci` for a short share."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.soak import (
    api,
    checkpoints,
    daemons,
    described,
    errors,
    journals,
    limits,
    places,
    powercuts,
    ranks,
    table,
    trainers,
    weights,
    yields,
)
from tests.soak.counts import Counts

CI_SEED = 20261122  # a failed check must fail again when repeated

# Each with its share of the time, and its seconds in --ci.
CAMPAIGNS: dict[str, tuple[Callable[[float, int], Counts], float, float]] = {
    "weights": (weights.run, 0.2, 200),  # 25 interrupted runs and more
    "ranks": (ranks.run, 0.1, 12),  # a run once begun ends: 15 to 40 s
    "trainers": (trainers.run, 0.2, 45),
    "daemons": (daemons.run, 0.2, 60),
    "journal": (journals.run, 0.1, 15),
    "checkpoints": (checkpoints.run, 0.05, 10),
    "errors": (errors.run, 0.1, 30),
    "powercuts": (powercuts.run, 0.05, 12),
    "moves": (places.moves, 0.04, 8),
    "copies": (places.copies, 0.03, 6),
    "restores": (places.restores, 0.04, 8),
    "strangers": (places.strangers, 0.03, 6),
    "api": (api.run, 0.05, 25),
    "yields": (yields.run, 0.1, 20),
    "openapi": (described.run, 0.1, 35),
    "limits": (limits.run, 0.05, 20),
}


def main(argv: list[str]) -> int:
    """Exit status 1 if any promise was broken."""
    asked = _parse(argv)
    chosen = asked.campaign or list(CAMPAIGNS)
    whole = sum(CAMPAIGNS[name][1] for name in chosen)
    failures: list[str] = []
    for name in chosen:
        campaign, share, ci_seconds = CAMPAIGNS[name]
        seconds = ci_seconds if asked.ci else asked.seconds * share / whole
        seed = CI_SEED if asked.ci else asked.seed
        failures += _run(name, campaign, seconds, seed, asked.results)
    for words in failures:  # repeated at the end of the log
        print(f"FAILED: {words}")
    print(f"{len(failures)} failures; the counts are in {asked.results}")
    return 1 if failures else 0


def _run(
    name: str,
    campaign: Callable[[float, int], Counts],
    seconds: float,
    seed: int,
    results: Path,
) -> list[str]:
    """Run a campaign; returns its failures, each with the campaign's name."""
    print(f"--- {name}: {seconds:.0f} s, seed {seed} ---", flush=True)
    began = time.monotonic()
    try:
        counts = campaign(seconds, seed)
    except Exception as error:  # an error of the harness is a failure too, and the others continue
        traceback.print_exc()
        counts = Counts(name, seed, failures=[f"the harness broke: {error!r}"])
    table.append(counts, results)
    done = ", ".join(f"{number:,} {what}" for what, number in counts.done.items())
    took = time.monotonic() - began
    print(f"{name}: {done}; {len(counts.failures)} failures in {took:.0f} s", flush=True)
    return [f"{name}: {words}" for words in counts.failures]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for all campaigns together")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--campaign", action="append", choices=list(CAMPAIGNS))
    parser.add_argument("--results", type=Path, default=table.PATH, help="the table to append to")
    parser.add_argument("--ci", action="store_true", help="a short share of every campaign")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
