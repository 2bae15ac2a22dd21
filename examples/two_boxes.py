"""Ranks on several machines by hand: `python two_boxes.py RUN_DIR FOLDER [DEVICE ...]`.

Writes the order of RUN_DIR's newest attempt into FOLDER for one rank on each DEVICE (by default
cuda:0 of two machines) and prints the command for each machine. FOLDER must be seen by all of them
under the same path, and so must the data directory that RUN_DIR lies in. It starts at step 0, apart
from the run, and no daemon knows of it.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
from pathlib import Path

from trainer.contract import journal, orders
from trainer.contract.orders import AttemptOrder, Lineage
from trainer.contract.rundir import INBOX, RunDir

PORT = 29500


def main(run_dir: Path, folder: Path, devices: list[str]) -> int:
    source, target = RunDir(run_dir.absolute()), RunDir(folder.absolute())
    attempt = target.attempt(1)
    attempt.mkdir(parents=True)
    shutil.copy(source.data, target.data)
    order = orders.read(source.attempt(source.highest_attempt()), AttemptOrder)
    apart = {
        "attempt": 1, "token": secrets.token_hex(16), "run_dir": str(target.root),
        "device": devices[0], "devices": devices, "lineage": Lineage(limits={}),
        "from_checkpoint": None, "pinned": [], "resume_expected": False,
    }  # fmt: skip
    changed = order.model_copy(update=apart)
    orders.write(attempt, changed)
    header = journal.JournalHeader(changed.run_id, 1, changed.token)
    journal.Writer.create(attempt / INBOX, header).close()
    for node in range(len(devices)):
        print(
            f"PYTHONSAFEPATH=1 {sys.executable} -P -m torch.distributed.run "
            f"--nnodes {len(devices)} --node-rank {node} --nproc-per-node 1 --max-restarts 0 "
            f"--master-addr {socket.gethostname()} --master-port {PORT} -m trainer {attempt}"
        )
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    given = sys.argv[3:] or ["cuda:0", "cuda:0"]
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), given))
