"""One scheduling decision: queries of a tick with 10,000 queued runs, of which it loads the heads.

The heads are four runs of each pair of device and hours; here of 8 GPUs and 8 sets of hours, with
a run on each GPU.
"""

from __future__ import annotations

import statistics
import time

from server.scheduling.decide import Opening, Place, Workload, decide
from server.supervision.worklist import HEADS
from tests.bench import bars

GPUS, HOURS = 8, 8
TIMES = 200


def main() -> None:
    places = [Place(f"cuda:{gpu}") for gpu in range(GPUS)]
    workloads = [*_running(), *_heads()]
    seconds, found = [], decide(places, workloads, 10_000.0)
    for _ in range(TIMES):
        began = time.perf_counter()
        decide(places, workloads, 10_000.0)
        seconds.append(time.perf_counter() - began)
    assert len(found.waits) + len(found.grants) == GPUS * HOURS * HEADS
    print(f"{len(workloads)} workloads on {GPUS} GPUs, {len(found.yields)} of which yield")
    bars.at_most("a decision with the heads of 10,000", statistics.median(seconds) * 1e3, 2, "ms")


def _running() -> list[Workload]:
    return [
        Workload(f"r{gpu}", (f"cuda:{gpu}",), (0.0,), holds=(f"cuda:{gpu}",)) for gpu in range(GPUS)
    ]


def _heads() -> list[Workload]:
    """The heads of each queue; every other set of hours is closed."""
    return [
        Workload(
            f"q{gpu}-{hours}-{place}",
            (f"cuda:{gpu}",),
            (float(place),),
            priority=hours,
            opening=Opening(hours % 2 == 0, opens_at=20_000.0),
        )
        for gpu in range(GPUS)
        for hours in range(HOURS)
        for place in range(HEADS)
    ]


if __name__ == "__main__":
    main()
