"""A real Slurm of this machine: slurmctld and two slurmd on loopback, in a directory of its own.

No root, no munge, no systemd: authentication `none`, free ports, two virtual nodes. It is up within
about a second, and `end` leaves no process behind.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NODES = ("node1", "node2")
SBIN = "/usr/sbin:/sbin"
SPAWNED = "TRAIND_TEST_SLURM"

_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=10000,bf_interval=1
PreemptType={preempt}
PreemptMode={preempt_mode}
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait={kill_wait}
MinJobAge={min_job_age}
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
MessageTimeout=5
TCPTimeout=2
Waittime=0
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port1} CPUs=4 RealMemory=2000
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port2} CPUs=4 RealMemory=2000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=node1,node2 MaxTime=INFINITE State=UP PriorityTier=10
"""


def is_there() -> bool:
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    return all(shutil.which(program, path=path) for program in PROGRAMS)


class SlurmCluster:
    """Up after the constructor. Commands go through `command`, with this cluster's configuration.

    environment: what a daemon needs to reach this cluster and no other.
    """

    def __init__(
        self,
        root: Path,
        *,
        kill_wait: int = 5,
        min_job_age: int = 300,
        preempts: bool = False,
    ) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "state").mkdir(exist_ok=True)
        ports = _free_ports(3)
        self.conf = root / "slurm.conf"
        self.conf.write_text(
            _CONF.format(
                root=root, user=pwd.getpwuid(os.getuid()).pw_name, ctld_port=ports[0],
                port1=ports[1], port2=ports[2], kill_wait=kill_wait, min_job_age=min_job_age,
                preempt="preempt/partition_prio" if preempts else "preempt/none",
                preempt_mode="CANCEL" if preempts else "OFF",
            )
        )  # fmt: skip
        self.environment = {
            "SLURM_CONF": str(self.conf),
            "PATH": f"{os.environ.get('PATH', '')}:{SBIN}",
            SPAWNED: str(root),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self.start_controller()
            for node in NODES:
                self.start_node(node)
            self.wait_idle()
        except BaseException:
            self.end()
            raise

    # --- processes -------------------------------------------------------------------------------

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D")
        self.until(lambda: self.command("scontrol", "ping", check=False).returncode == 0)

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def stop_controller(self) -> None:
        """In order, so that it knows its jobs when it is back: it saves them every few seconds."""
        process = self._processes.pop("slurmctld")
        process.terminate()
        process.wait(30)

    def kill(self, node: str) -> None:
        """SIGKILL to the daemon of a node."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    def mend(self) -> None:
        """Everything up and idle again, whatever the test before has left."""
        if "slurmctld" not in self._processes:
            self.start_controller()
        for node in NODES:
            if node not in self._processes:
                self.start_node(node)
            self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.command("scancel", "-u", str(os.getuid()), check=False)
        self.wait_idle()

    def _start(self, name: str, *command: str) -> None:
        with open(self.root / f"{name}.out", "ab") as out:
            self._processes[name] = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **self.environment}
            )

    def wait_idle(self, count: int = len(NODES)) -> None:
        def is_idle() -> bool:
            states = self.command("sinfo", "-N", "-h", "-p", "main", "-o", "%T").stdout.split()
            return states.count("idle") >= count

        self.until(is_idle)

    # --- commands --------------------------------------------------------------------------------

    def command(
        self, *command: str, check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, check=check, timeout=seconds,
            env={**os.environ, **self.environment},
        )  # fmt: skip

    def jobs(self, states: str = "all") -> list[tuple[str, str, str]]:
        """(id, name, state) of each job the controller knows."""
        lines = self.command("squeue", "-h", "-t", states, "-o", "%i %j %T").stdout.splitlines()
        return [(job, name, state) for job, name, state in (line.split() for line in lines)]

    def hold(self, *, partition: str = "main", seconds: int = 600) -> str:
        """Occupy every node, so that further jobs have to wait. The job's id."""
        said = self.command(
            "sbatch", "--parsable", "-p", partition, "-N", "2", "--exclusive",
            "-o", "/dev/null", "-J", "holder", "--wrap", f"sleep {seconds}",
        )  # fmt: skip
        job = re.match(r"\d+", said.stdout)
        assert job is not None
        self.until(lambda: (job[0], "holder", "RUNNING") in self.jobs())
        return job[0]

    def until(self, holds: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, (self.root / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.05)

    # --- the end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """End every job and daemon: whatever carries this cluster's mark."""
        self.command("scancel", "--full", "-s", "KILL", "-u", str(os.getuid()), check=False)
        for name in list(self._processes):
            self._processes[name].terminate()
        for name in list(self._processes):
            try:
                self._processes[name].wait(5)
            except subprocess.TimeoutExpired:
                self._processes[name].kill()
                self._processes[name].wait()
        for process in marked(self.root):
            process.send_signal(signal.SIGKILL)


def marked(root: Path) -> list[psutil.Process]:
    """Processes that a cluster in this directory started: slurmstepd, and what their jobs run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(SPAWNED) == str(root) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()
