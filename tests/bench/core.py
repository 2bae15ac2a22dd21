"""CORE on the fixture's bundle: ours against one example at a time.

`python -m tests.bench.core [threads]`; torch's default number of threads unless given. nanochat
evaluates one example at a time: its choices as one padded batch, uncompiled since lengths differ,
with logits, loss and argmax of every token. The opponent of the bar is the reference model, as in
all benchmarks. The same with traind's model measures the gain of batching, shared prefixes and
logits only for scored tokens; one prompt at a time measures the cost of padding. Each runs in a
separate process, traind's with the trainer's allocator settings. All must give the same answers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.bench import bars
from tests.bench.compare import Contender, elsewhere, interleave
from tests.reference.model import PlainGPT
from tests.trainer.evaluate import fixture
from trainer.evaluate import core, core_prompts, network
from trainer.evaluate.core_forward import Scores
from trainer.evaluate.core_prompts import Item
from trainer.model.gpt import GPT
from trainer.runtime import malloc

Forward = Callable[[torch.Tensor], torch.Tensor]
PAIRS = 16


@torch.no_grad()
def padded(model: Forward, item: Item) -> Scores:
    """The prompts of one example as one batch, padded at the end."""
    longest = max(len(p.ids) for p in item.prompts)
    ids_BT = torch.zeros((len(item.prompts), longest), dtype=torch.int64)
    for row, prompt in zip(ids_BT, item.prompts, strict=True):
        row[: len(prompt.ids)] = torch.from_numpy(prompt.ids.astype(np.int64))
    logits_BTV = model(ids_BT)
    targets_BT = torch.roll(ids_BT, -1, dims=1)
    losses = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
    losses_BT, best_BT = losses.view_as(ids_BT), logits_BTV.argmax(-1)
    spans = [slice(p.start - 1, p.end - 1) for p in item.prompts]
    return Scores(
        [losses_BT[i, span].mean().item() for i, span in enumerate(spans)],
        [best_BT[i, span].tolist() for i, span in enumerate(spans)],
    )


def singly(model: Forward, item: Item) -> Scores:
    """One prompt at a time."""
    scores = [padded(model, Item((prompt,), 0)) for prompt in item.prompts]
    return Scores([s.mean_losses[0] for s in scores], [s.argmax[0] for s in scores])


def plain(score: Callable[[Item], Scores]) -> dict[str, float]:
    longest = network.LONGEST_FACTOR * fixture.SHAPE.sequence_len
    results = {}
    for task in fixture.bundle().tasks:
        items = core_prompts.pool(task, None)
        right = []
        for index in range(len(items)):
            item = core_prompts.item(task, items, index, fixture.tokenizer(), longest)
            right.append(core.is_right(item, score(item)))
        results[task.label] = float(np.mean(right, dtype=np.float32))
    return results


def ours(model: GPT) -> dict[str, float]:
    result = core.evaluate(model, fixture.tokenizer(), fixture.bundle())
    assert result is not None
    return result.results


def reference() -> Forward:
    model = PlainGPT(fixture.SHAPE)
    model.load_state_dict(fixture.model().state_dict())
    return model


def opponent(make: Callable[[], Forward], how: Callable[..., Scores]) -> Callable[[], Any]:
    return partial(plain, partial(how, make()))


def main() -> None:
    if sys.argv[1:]:
        torch.set_num_threads(int(sys.argv[1]))
    malloc.keep_freed_memory()
    evaluate = partial(ours, fixture.model())
    threads = f"threads: {torch.get_num_threads()}"
    opponents = {
        "one example at a time": partial(opponent, reference, padded),
        "the same through our model": partial(opponent, fixture.model, padded),
        "one prompt at a time through our model": partial(opponent, fixture.model, singly),
    }
    for name, make in opponents.items():
        with elsewhere(make) as other:
            assert evaluate() == other() == fixture.reference()["core"]["results"]
            found = interleave(Contender(evaluate), Contender(other), warm_up=1, pairs=PAIRS)
        print(found.line(f"CORE against {name}, {threads}"), flush=True)
        if name == "one example at a time":
            bars.at_least(f"CORE against {name}, {threads}", found.ratio, 5.0)


if __name__ == "__main__":
    main()
