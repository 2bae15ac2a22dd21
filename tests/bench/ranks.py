"""Ranks and lanes on the CPU: speedup of two ranks, their communication, and the cost of lanes.

One thread per rank, gloo over loopback. Two ranks need two cores: on a busy machine they wait for
the scheduler and for each other. No GPU was measured with several ranks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bench import bars
from tests.bench.compare import Contender, interleave
from tests.e2e.real_daemon import TINY, RealDaemon
from trainer.contract.plan import make_plan
from trainer.contract.rundir import RunDir
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec, resolve
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.runtime import peers
from trainer.runtime import world as worlds
from trainer.runtime.world import World
from trainer.train.batch_broadcast import BatchBroadcast
from trainer.train.forward_backward import MicroBatch
from trainer.train.step import Stepper

MICRO_BATCHES = 4
DEALT_TOKENS = 65_536
STEPS = 4  # of a turn
TURNS = 12
WORDS = 400
WARM_UP = 2
DEATHS = (
    ("training", "loop.step=delay(0.02)"),
    ("before all have joined", "trainer.load@1=delay(600)"),
)
GANG: dict[str, Any] = {
    **TINY,
    "name": "gang",
    "devices": ["cpu", "cpu"],
    "batch": {"tokens": 512, "device_batch_size": 4},
    "horizon": {"steps": 100_000},
    "evaluate": {"bpb_every": None, "sample_every": None},
}
RATES = {"lr_multiplier": 0.5, "momentum": 0.95, "weight_decay": 0.1}


def main() -> None:
    torch.set_num_threads(1)
    with Gang(1) as one, Gang(2) as two:
        turns = [(one.ask("step"), two.ask("step")) for _ in range(TURNS)]
        spoken = two.ask("words") * 1e3
    wide = f"step of 2,048 tokens, depth 4, width {spec_of(32).model.depth * 32}"
    alone, together = (statistics.median(times) * 1e3 for times in zip(*turns, strict=True))
    print(f"{wide}: one rank {alone:.0f} ms, two {together:.0f} ms, in {TURNS} turns of each")
    gain = statistics.median(a / b for a, b in turns)
    bars.at_least("2 ranks x 1 thread against 1 x 1", gain, 1.6)
    bars.at_most("words and dealing of 65,536 tokens", spoken, 0.5, "% of a 100 ms step")
    plain, lanes = (step_of(spec_of(16), World(), count) for count in (1, MICRO_BATCHES))
    found = interleave(Contender(lanes), Contender(plain), warm_up=3, pairs=40)
    print(found.line("a step of the demo in 4 lanes against one without"))
    bars.at_most("4 lanes at demo size", 100 * (1 / found.ratio - 1), 10, "% of a step")
    deaths = [_recovers_after(*case) for case in DEATHS]
    bars.at_most("death of a rank until the run recovers", max(deaths), 4, "s")


def _recovers_after(when: str, fail: str) -> float:
    """Seconds from kill -9 of rank 1 until the daemon reports it and the run recovers."""
    with tempfile.TemporaryDirectory(prefix="traind-bench-") as folder:
        daemon = RealDaemon(Path(folder), TRAIND_TICK_SECONDS="1", TRAIND_FAIL=fail)
        try:
            daemon.client.create_run(GANG)
            os.kill(_rank_1(daemon, has_joined=when == "training"), signal.SIGKILL)
            began = time.perf_counter()
            daemon.until("gang", lambda now: now.reason == "rank_lost")
            took = time.perf_counter() - began
            print(f"rank 1 killed, {when}: the run recovers {took:.1f} s later")
            daemon.client.cancel("gang")
            return took
        finally:
            daemon.end()


def _rank_1(daemon: RealDaemon, *, has_joined: bool) -> int:
    """The pid of rank 1, in training or while rank 0 waits for it."""
    if has_joined:
        daemon.until("gang", lambda now: now.step >= 5 and len(now.ranks) == 2)
        return daemon.client.ranks("gang")[1].pid
    attempt = RunDir(Path(daemon.client.run("gang").directory)).attempt(1)
    deadline = time.monotonic() + 120
    while len(found := peers.registered(attempt)) < 2:
        if time.monotonic() > deadline:
            raise RuntimeError("the ranks were not started")
        time.sleep(0.05)
    time.sleep(2 * WARM_UP)  # rank 0 has loaded torch by then, and waits
    return found[1].identity.pid


def spec_of(aspect_ratio: int) -> RunSpec:
    """The demo's shape; 16 is its width of 64."""
    return resolve(
        {
            "name": "bench",
            "model": {"aspect_ratio": aspect_ratio, "head_dim": 16},
            "batch": {"tokens": 2048, "device_batch_size": 4},
        }
    )


def step_of(spec: RunSpec, world: World, lanes: int) -> Callable[[], Any]:
    """One step of this rank's share of four micro-batches of 4 x 128 tokens."""
    model = GPT(shape_of(spec.model), compute_dtype=torch.float32, device="cpu")
    model.init_weights(0)
    optimizer = Optimizer(model, make_plan(spec).hyperparameters, lanes=lanes, world=world)
    stepper = Stepper(
        model, optimizer, compile=False, deterministic=False, rows=4, lanes=lanes, world=world
    )
    everything = micro_batches(spec)
    each = MICRO_BATCHES // world.size
    own = everything[world.rank * each :][:each]
    tokens = [inputs for inputs, _ in everything]
    return lambda: stepper.train_step(own, tokens, **RATES)


def micro_batches(spec: RunSpec) -> list[MicroBatch]:
    draw = torch.Generator().manual_seed(0)
    size = (MICRO_BATCHES, 4, spec.model.sequence_len + 1)
    blocks = torch.randint(0, spec.model.vocab_size, size, generator=draw)
    return [(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in blocks]


# --- in processes of their own -------------------------------------------------------------------


class Gang:
    """`count` ranks that work on request, so that two gangs can take turns."""

    def __init__(self, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": port}
        self._ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.bench.ranks", str(count)],
                env={**os.environ, **shared, "MASTER_ADDR": "127.0.0.1", "RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks:  # all of them first: the ranks leave together
            if rank.stdin is not None:
                rank.stdin.close()
        for rank in self._ranks:
            rank.wait(60)

    def ask(self, what: str) -> float:
        """Seconds, as rank 0 measured them."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(what + "\n")
            rank.stdin.flush()
        found = [json.loads(rank.stdout.readline()) for rank in self._ranks if rank.stdout]
        return found[0]


def measure(count: int) -> None:
    """Answer each input line with the median of the requested measurement."""
    torch.set_num_threads(1)
    world = worlds.join(count, "cpu")
    step = step_of(spec_of(32), world, lanes=count)
    for line in sys.stdin:
        found = (
            median(step, STEPS) if line.strip() == "step" else median(lambda: speak(world), WORDS)
        )
        print(json.dumps(found), flush=True)
    world.leave()


def speak(world: World) -> None:
    """Communication between ranks at an idle step boundary, and of the step's rows."""
    deal = BatchBroadcast(world, 8, 2048, shifted=True, pin=False, vocab_size=32_768)
    world.all_reduce_max([0, 0, 0, 0, 0])
    world.broadcast_block(deal.block(DEALT_TOKENS // (8 * 2048)))


def median(what: Callable[[], Any], count: int) -> float:
    times = []
    for _ in range(WARM_UP + count):
        began = time.perf_counter()
        what()
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


if __name__ == "__main__":
    measure(int(sys.argv[1])) if sys.argv[1:] else main()
