"""A daemon without HTTP as a process of its own, to be killed at will: DATA_DIR TRAINER_PYTHON.

A third argument names a way of tests/soak/sabotage.py to break it, for a control.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from server.database.db import Database
from server.machine.devices import Device
from server.settings import Settings
from server.supervision.context import SupervisorContext
from server.supervision.startup import arrive
from server.supervision.supervisor import Supervisor


def main() -> None:
    settings = Settings(
        data_dir=Path(sys.argv[1]), trainer_python=sys.argv[2], tick_seconds=0.03, stall_seconds=30
    )
    if len(sys.argv) > 3:
        from tests.soak import sabotage

        getattr(sabotage, sys.argv[3])()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    db = Database.open(settings)
    arrive(db, settings.paths)
    supervisor = Supervisor(
        SupervisorContext(db, settings, (Device("cpu", "a processor"),), (0.05, 0.1))
    )
    supervisor.start(lambda error: ended.set())
    print("ready", flush=True)
    while not ended.wait(0.1):
        pass
    supervisor.stop()
    db.close()
    sys.exit(0 if supervisor.failure is None else 1)


if __name__ == "__main__":
    main()
