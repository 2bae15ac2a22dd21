"""The head and the embedding tables alone: `python -m tests.bench.head`."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.compare import Contender, interleave
from trainer.model import head
from trainer.model.embedding import TouchedRows

TOKENS, WIDTH = 2048, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    ours, opponent = heads(asked.vocab)
    found = interleave(ours, opponent, warm_up=2, pairs=asked.pairs)
    print(found.line(f"head, {TOKENS} tokens, vocabulary {asked.vocab}"))
    ours, opponent = tables(asked.vocab)
    found = interleave(ours, opponent, warm_up=2, pairs=asked.pairs)
    print(found.line(f"embedding gradient, {TOKENS} tokens, vocabulary {asked.vocab}"))


def heads(vocab: int) -> tuple[Contender, Contender]:
    """Loss and both gradients: chunked, and compiled over complete logits."""
    x_ND = torch.randn(TOKENS, WIDTH)
    weight_VD = torch.randn(vocab, WIDTH) * 0.1
    targets_N = torch.randint(0, vocab, (TOKENS,))
    gradient_VD, one = torch.zeros_like(weight_VD), torch.tensor(1.0)
    chunk = torch.compile(head.chunk_loss_and_gradient, dynamic=False)

    def whole(x: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(15 * torch.tanh(F.linear(x, weight).float() / 15), targets_N)

    compiled = torch.compile(whole, dynamic=False)

    def opponent() -> None:
        x, weight = x_ND.requires_grad_(), weight_VD.requires_grad_()
        torch.autograd.grad(compiled(x, weight), (x, weight))

    def ours() -> None:
        with torch.no_grad():
            head.loss_and_gradient(x_ND, weight_VD, targets_N, gradient_VD, one, chunk)

    return Contender(ours), Contender(opponent)


def tables(vocab: int) -> tuple[Contender, Contender]:
    """Gradient of one table: touched rows, and a compiled dense backward added to the dense sum."""
    frequency = 1 / torch.arange(1, vocab + 1, dtype=torch.float64)
    tokens = torch.multinomial(frequency, TOKENS, True).view(4, -1)
    table = torch.randn(vocab, WIDTH, requires_grad=True)
    gradient = torch.randn(*tokens.shape, WIDTH)
    compiled = torch.compile(lambda t: F.embedding(tokens, t), dynamic=False)

    def ours() -> None:
        touched = TouchedRows([tokens], vocab, torch.device("cpu"))
        touched.add("t", gradient, touched.slots(tokens))

    def opponent() -> None:
        table.grad = None
        compiled(table).backward(gradient)

    return Contender(ours), Contender(opponent)


if __name__ == "__main__":
    main()
