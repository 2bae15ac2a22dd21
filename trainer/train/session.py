"""Training session: the objects of one attempt, and the state that its checkpoints store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import store
from trainer.checkpoint.background_writer import Saver
from trainer.contract import events
from trainer.contract.orders import AttemptOrder, Lineage
from trainer.contract.rundir import RunDir
from trainer.contract.spec import MAX_STEPS
from trainer.data import packed_rows
from trainer.data.background_check import BackgroundCheck
from trainer.data.loader import Loader
from trainer.data.prepared import PreparedData
from trainer.data.tokenizer import Tokenizer
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.runtime import device
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter
from trainer.runtime.world import World
from trainer.train import batch_broadcast
from trainer.train import frozen_choices as choices
from trainer.train.batch_broadcast import BatchBroadcast, NoLoader, StepBatches
from trainer.train.frozen_choices import Choices
from trainer.train.state import TrainState, rng_state
from trainer.train.step import Stepper


@dataclass
class Session:
    """The parts of one attempt. `expected_loss`: loss that the first step must repeat, if known.

    recheck: val bpb recorded in the checkpoint. since_joint: the same at the first step of a phase,
    until val bpb is measured in that phase.
    world: the ranks that share the attempt. Each has a session; only rank 0 has reporter, loader,
    checkpoints and commands.
    """

    order: AttemptOrder
    run_dir: RunDir
    control: Control
    reporter: Reporter
    device: torch.device
    choices: Choices
    fingerprint: dict[str, Any]
    data: PreparedData
    tokenizer: Tokenizer
    model: GPT
    optimizer: Optimizer
    stepper: Stepper
    loader: Loader | NoLoader
    state: TrainState
    saver: Saver
    sensors: device.Sensors
    world: World = field(default_factory=World)
    parent: str | None = None
    expected_loss: float | None = None
    inexact: list[str] = field(default_factory=list)
    recheck: dict[str, Any] | None = None
    since_joint: dict[str, Any] | None = None
    corpus_check: BackgroundCheck | None = None
    saved_step: int = -1
    saved_evaluated: dict[str, int] | None = None  # of a checkpoint within a step's evaluations
    unanswered: str | None = None
    told_of_pageable: bool = False
    told_of_compiler: bool = False
    save_began: float = field(default_factory=time.monotonic)

    @property
    def own_lineage(self) -> Lineage:
        """The lineage including this attempt's own checkpoints."""
        limits = {**self.order.lineage.limits, self.order.attempt: MAX_STEPS}
        return Lineage(limits=limits)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint in bytes, from the tensors themselves."""
        tensors = [*self.model.state_dict().values(), *self.optimizer.whole_layout().values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def accumulation(self) -> int:
        """Micro-batches per step on this rank."""
        batch = self.order.plan.batch
        return batch.tokens // (self.choices.device_batch_size * batch.sequence_len)

    @property
    def is_saved(self) -> bool:
        """True if a checkpoint of the current state exists. One that an earlier attempt wrote
        during this step's evaluations does not count: an uninterrupted run saves after them."""
        if self.saved_step != self.state.step:
            return False
        return self.saved_evaluated in (None, self.state.evaluated)

    def next_step_batches(self) -> StepBatches:
        """The micro-batches of one step; a collective call with several ranks."""
        deal = BatchBroadcast(
            world=self.world,
            rows=self.choices.device_batch_size,
            sequence_len=self.order.plan.batch.sequence_len,
            shifted=self.data.source != packed_rows.SOURCE,
            pin=self.device.type == "cuda",
            vocab_size=self.model.shape.vocab_size,
        )
        return batch_broadcast.next_step(self.loader, self.accumulation, deal)

    def state_dict(self) -> dict[str, Any]:
        """Content of state.json."""
        return {
            "train": self.state.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": rng_state(),
        }

    def manifest(
        self, why: str, pinned: bool, next_loss: float | None
    ) -> Callable[[dict[str, store.FileEntry]], store.Manifest]:
        """describe(files) for a checkpoint of the current state."""
        step, tokens = self.state.step, self.state.tokens_seen
        evaluations, parent = dict(self.state.evaluations), self.parent
        now = time.time()

        def describe(files: dict[str, store.FileEntry]) -> store.Manifest:
            return store.Manifest(
                run_id=self.order.run_id,
                attempt=self.order.attempt,
                step=step,
                tokens_seen=tokens,
                parent=parent,
                why=why,
                pinned=pinned,
                files=files,
                spec_sha256=spec_sha256(self.order),
                data_identity=self.data.identity(),
                fingerprint=self.fingerprint,
                evaluations=evaluations,
                next_loss=next_loss,
                approximate="; ".join(self.inexact) or None,
                unix_seconds=now,
            )

        return describe

    def check_compiler(self) -> None:
        """Report once that the compiler failed and the step runs without it; later attempts start
        without it."""
        reason = self.stepper.compiler.reason
        if reason and self.choices.compile and not self.told_of_compiler:
            self.told_of_compiler = True
            self.fingerprint |= {"compiled": False, "compile_reason": reason}
            if self.world.leads:
                choices.freeze_uncompiled(self.run_dir)
            self.reporter.emit(
                events.Notice(
                    level="warning",
                    code="compile_failed",
                    message="torch.compile cannot be used, so the run continues without it, "
                    f"slower: {reason}. Once that is fixed, resume with overrides.compile true",
                    step=self.state.step,
                )
            )

    def agree_on_compiler(self) -> None:
        """Disable a compiler that fails on any rank: all ranks must run the same functions."""
        compiler = self.stepper.compiler
        if self.world.size > 1 and self.choices.compile:
            failed = [reason for reason in self.world.all_gather(compiler.reason) if reason]
            compiler.reason = failed[0] if failed else None

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and optimizer state for a checkpoint. A collective call; only rank 0 gets the
        complete state."""
        return dict(self.model.state_dict()), self.optimizer.collected_state()

    def close(self) -> None:
        if self.corpus_check is not None:
            self.corpus_check.close()
        self.loader.close()
        self.saver.wait()


def spec_sha256(order: AttemptOrder) -> str:
    """sha256 of the parts of the spec that determine the weights."""
    spec = order.spec
    parts = [
        part.model_dump(mode="json")
        for part in (spec.model, spec.data, spec.batch, spec.optimizer, spec.numerics)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
