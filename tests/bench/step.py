"""The whole training step against the plain reference: `python -m tests.bench.step`.

The opponent runs in a separate process with glibc's default allocator settings, as nanochat does.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from tests.bench import bars, training
from tests.bench.compare import Contender, elsewhere, interleave


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accumulation", type=int, nargs="*", default=[4])
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for accumulation in asked.accumulation:
        spec = training.cpu_spec(asked.vocab, asked.rows, accumulation)
        with elsewhere(partial(training.opponent, spec)) as opponent:
            found = interleave(
                Contender(training.ours(spec)),
                Contender(opponent),
                warm_up=asked.warm_up,
                pairs=asked.pairs,
            )
        name = f"step, accumulation {accumulation}, vocabulary {asked.vocab}"
        print(found.line(name), flush=True)
        bars.at_least(name, found.ratio, 1.25)


if __name__ == "__main__":
    main()
