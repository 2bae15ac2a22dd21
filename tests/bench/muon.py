"""Muon alone, on the matrices of a depth-4, width-256 model: `python -m tests.bench.muon`."""

from __future__ import annotations

import argparse

import torch

from tests.bench.compare import Contender, interleave
from tests.reference.optimizer import muon as plain_muon
from trainer.optim.muon import muon_update

SHAPES = [(16, 256, 256), (4, 256, 1024), (4, 1024, 256)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for size in SHAPES:
        found = interleave(*contenders(size), warm_up=2, pairs=asked.pairs)
        print(found.line(f"muon, stack {'x'.join(map(str, size))}"))


def contenders(size: tuple[int, int, int]) -> tuple[Contender, Contender]:
    """traind's Muon on banks; the reference's compiled, with stacking and copying back."""
    count, rows, cols = size
    second = (count, rows, 1) if rows >= cols else (count, 1, cols)
    p, g, m, v = torch.randn(size), torch.randn(size), torch.zeros(size), torch.zeros(second)
    lr, momentum, decay = torch.tensor(0.02), torch.tensor(0.95), torch.tensor(0.1)
    matrices, gradients = list(p.clone().unbind()), list(g.clone().unbind())
    plain_m, plain_v = m.clone(), v.clone()
    compiled = torch.compile(plain_muon, dynamic=False)

    def opponent() -> None:
        stack, stacked = torch.stack(matrices), torch.stack(gradients)
        compiled(stack, stacked, plain_m, plain_v, lr, momentum, decay, torch.float32)
        for matrix, new in zip(matrices, stack.unbind(), strict=True):
            matrix.copy_(new)

    def ours() -> None:
        muon_update(p, g, m, v, lr, momentum, decay, None, False)

    return Contender(ours), Contender(opponent)


if __name__ == "__main__":
    main()
