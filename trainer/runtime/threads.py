"""OpenMP wait policy: idle threads sleep, unless the environment says otherwise.

OpenMP's threads spin while they wait. Beside any other busy process the one that is waited for is
off its core, and the others burn theirs: a compiled step took 7 to 20 s on two busy cores where one
whose threads sleep took 3 (DECISIONS). Must run before torch is loaded, which reads it once.
"""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def wait_asleep() -> None:
    """Let waiting threads sleep, here and in what this process starts."""
    if not any(name in os.environ for name in (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ[WAIT_POLICY] = "passive"
