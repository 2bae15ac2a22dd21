"""CORE: accuracy over the tasks of a bundle, centred on guessing (DCLM, arXiv 2406.11794).

`CoreEvaluation.run` continues after a stop, so a pause only loses the current batch; `evaluate` is
the same for callers that discard a stopped evaluation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, takewhile, zip_longest
from typing import Any

import numpy as np
import torch

from trainer.contract.shape import flops_per_token
from trainer.evaluate import core_forward, core_prompts, network
from trainer.evaluate.core_bundle import Bundle, Task
from trainer.evaluate.core_forward import Scores, Tree
from trainer.evaluate.core_prompts import Encoder, Item, Unscorable
from trainer.evaluate.network import Network
from trainer.evaluate.parallel import side_by_side
from trainer.evaluate.undisturbed import undisturbed
from trainer.model.gpt import GPT
from trainer.runtime.world import World

BATCH_FLOPS_CPU = 2e11  # a stop takes effect between batches: within seconds at any depth
BATCH_TOKENS_CPU = 6144
BATCH_TOKENS_DEVICE = 32_768
NAMED = 20  # items that cannot be scored are all counted, and up to this many named per task

ReportItems = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """Result of one item: right or not, and why if it could not be scored. scores: on request."""

    right: bool
    why: str | None = None
    item: Item | None = None
    scores: Scores | None = None


@dataclass(frozen=True)
class CoreResult:
    """CORE score. Accuracies are float32 means as in nanochat: equal answers give equal numbers.

    not_scored: {task: {"count": n, "items": [[index, why], ...]}} of items counted as wrong.
    details: {task: outcomes in the order of the pool}, only on request.
    """

    core_metric: float
    results: dict[str, float]
    centered_results: dict[str, float]
    num_items: dict[str, int]
    not_scored: dict[str, dict[str, Any]]
    seconds: float
    details: dict[str, list[Outcome]] = field(default_factory=dict, repr=False)

    def as_result(self) -> dict[str, Any]:
        """Content of an evaluation event: everything except seconds and details."""
        names = ("core_metric", "results", "centered_results", "num_items", "not_scored")
        return {name: getattr(self, name) for name in names}


def evaluate(
    model: GPT,
    tokenizer: Encoder,
    bundle: Bundle,
    *,
    max_per_task: int | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: ReportItems | None = None,
    details: bool = False,
    world: World | None = None,
) -> CoreResult | None:
    """CORE score of the current weights; None if stopped. progress(items done, items).

    world: ranks that take turns with the batches; each returns the same result, without details.
    """
    evaluation = CoreEvaluation(bundle, max_per_task, details=details)
    if world is not None and world.size > 1:
        return evaluation.run_shared(model, tokenizer, world, should_stop or (lambda: False))
    return evaluation.run(model, tokenizer, should_stop=should_stop, progress=progress)


def identity(bundle: Bundle, tokenizer_sha256: str, max_per_task: int | None) -> str:
    """Identity of a score: a hash of everything it depends on except the weights."""
    parts = ["core", bundle.sha256, tokenizer_sha256, max_per_task]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class CoreEvaluation:
    """The evaluation of one set of weights, item by item in a fixed order.

    state_dict: JSON, to continue in another process with the same weights, bundle and max_per_task.
    """

    def __init__(self, bundle: Bundle, max_per_task: int | None, *, details: bool = False) -> None:
        self.tasks = [(task, core_prompts.pool(task, max_per_task)) for task in bundle.tasks]
        self.key = [bundle.sha256, max_per_task]
        self.keeps_details = details
        self.outcomes: list[Outcome] = []
        self.seconds = 0.0

    @property
    def num_items(self) -> int:
        return sum(len(items) for _, items in self.tasks)

    def run(
        self,
        model: GPT,
        tokenizer: Encoder,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: ReportItems | None = None,
    ) -> CoreResult | None:
        """Continue until done; None once should_stop returns true (checked before each batch)."""
        began = time.monotonic()
        with undisturbed(model):
            net = Network(model)
            batches = self._batches(model, tokenizer)
            if should_stop is not None:
                batches = takewhile(lambda _: not should_stop(), batches)
            for outcomes in side_by_side(partial(self._scored, net), batches, _workers(model)):
                self.outcomes += outcomes
                if progress is not None:
                    progress(len(self.outcomes), self.num_items)
        self.seconds += time.monotonic() - began
        return self.result() if len(self.outcomes) == self.num_items else None

    def run_shared(
        self, model: GPT, tokenizer: Encoder, world: World, should_stop: Callable[[], bool]
    ) -> CoreResult | None:
        """`run` on several ranks, batch i on rank i modulo their number: batches and scores are the
        same as on one rank. None if a rank was told to stop, checked before each round of
        batches; the scores until then are lost."""
        began, stopped, own = time.monotonic(), False, []

        def turns() -> Iterator[list[Tree | Unscorable]]:
            nonlocal stopped
            for index, batch in enumerate(self._batches(model, tokenizer)):
                turn = index % world.size
                stopped = stopped or (turn == 0 and world.any(should_stop()))
                if stopped:
                    return
                if turn == world.rank:
                    yield batch

        with undisturbed(model):
            work = partial(self._scored, Network(model))
            for outcomes in side_by_side(work, turns(), _workers(model)):
                own.append([[outcome.right, outcome.why] for outcome in outcomes])
        if stopped:
            return None
        rounds = zip_longest(*world.all_gather(own), fillvalue=[])
        self.outcomes += [Outcome(*one) for batch in chain(*rounds) for one in batch]
        self.seconds += time.monotonic() - began
        return self.result()

    def result(self) -> CoreResult:
        """The scores of a finished evaluation."""
        results, centred, counts, not_scored = {}, {}, {}, {}
        for task, outcomes in self._by_task():
            accuracy = _accuracy(outcomes)
            results[task.label] = accuracy
            centred[task.label] = (accuracy - task.baseline) / (1 - task.baseline)
            counts[task.label] = len(outcomes)
            lost = [[i, o.why] for i, o in enumerate(outcomes) if o.why is not None]
            if lost:
                not_scored[task.label] = {"count": len(lost), "items": lost[:NAMED]}
        return CoreResult(
            core_metric=sum(centred.values()) / len(centred),
            results=results,
            centered_results=centred,
            num_items=counts,
            not_scored=not_scored,
            seconds=self.seconds,
            details={t.label: o for t, o in self._by_task()} if self.keeps_details else {},
        )

    def state_dict(self) -> dict[str, Any]:
        outcomes = [[outcome.right, outcome.why] for outcome in self.outcomes]
        return {"key": self.key, "outcomes": outcomes, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state. Raises ValueError if it is of another bundle or max_per_task."""
        if state["key"] != self.key or len(state["outcomes"]) > self.num_items:
            raise ValueError("the saved evaluation is of another bundle or max_per_task")
        self.outcomes = [Outcome(right, why) for right, why in state["outcomes"]]
        self.seconds = state["seconds"]

    def _batches(self, model: GPT, tokenizer: Encoder) -> Iterator[list[Tree | Unscorable]]:
        """The remaining items, prepared, in batches of about equal numbers of tokens."""
        limit = _batch_tokens(model)
        longest = network.LONGEST_FACTOR * model.shape.sequence_len
        batch: list[Tree | Unscorable] = []
        tokens = 0
        for task, items, index in self._remaining():
            prepared = _prepared(task, items, index, tokenizer, longest)
            size = len(prepared) if isinstance(prepared, Tree) else 0
            if batch and tokens + size > limit:
                yield batch
                batch, tokens = [], 0
            batch.append(prepared)
            tokens += size
        if batch:
            yield batch

    def _remaining(self) -> Iterator[tuple[Task, list[Any], int]]:
        skip = len(self.outcomes)
        for task, items in self.tasks:
            for index in range(min(skip, len(items)), len(items)):
                yield task, items, index
            skip = max(0, skip - len(items))

    def _scored(self, net: Network, batch: list[Tree | Unscorable]) -> list[Outcome]:
        trees = [entry for entry in batch if isinstance(entry, Tree)]
        scores = iter(core_forward.score(net, trees) if trees else [])
        return [
            self._outcome(entry.item, next(scores))
            if isinstance(entry, Tree)
            else Outcome(False, str(entry))
            for entry in batch
        ]

    def _outcome(self, item: Item, scores: Scores) -> Outcome:
        right = is_right(item, scores)
        return Outcome(right, None, item, scores) if self.keeps_details else Outcome(right)

    def _by_task(self) -> Iterator[tuple[Task, list[Outcome]]]:
        at = 0
        for task, items in self.tasks:
            yield task, self.outcomes[at : at + len(items)]
            at += len(items)


def _workers(model: GPT) -> int:
    return torch.get_num_threads() if model.device.type == "cpu" else 1


def _batch_tokens(model: GPT) -> int:
    if model.device.type != "cpu":
        return BATCH_TOKENS_DEVICE
    forward_flops = flops_per_token(model.shape) / 3
    return min(BATCH_TOKENS_CPU, max(256, int(BATCH_FLOPS_CPU / forward_flops)))


def _prepared(
    task: Task, items: list[Any], index: int, tokenizer: Encoder, longest: int
) -> Tree | Unscorable:
    try:
        return core_forward.tree(core_prompts.item(task, items, index, tokenizer, longest))
    except Unscorable as why:
        return why


def is_right(item: Item, scores: Scores) -> bool:
    """True if the gold prompt has the lowest mean loss (first of equals), or all tokens match."""
    if item.gold is None:
        (prompt,) = item.prompts
        return scores.argmax[0] == prompt.ids[prompt.start : prompt.end].tolist()
    losses = scores.mean_losses
    return losses.index(min(losses)) == item.gold


def _accuracy(outcomes: list[Outcome]) -> float:
    if not outcomes:
        return 0.0
    return float(np.mean([o.right for o in outcomes], dtype=np.float32))
