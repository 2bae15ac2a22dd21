"""OpenMP wait policy: idle threads sleep, unless the environment says otherwise.

OpenMP threads spin while they wait. Beside another busy process the awaited thread has no core
while the others burn theirs: a compiled step took 7 to 20 s on two busy cores, against 3 s with
sleeping threads (DECISIONS). Must run before torch is loaded, which reads the setting once.
"""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def wait_asleep() -> None:
    """Set waiting OpenMP threads to sleep, in this process and its children."""
    if not any(name in os.environ for name in (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ[WAIT_POLICY] = "passive"
