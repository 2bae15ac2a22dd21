"""Training session: builds everything that one attempt works with.

`build` ends with the run standing exactly where its newest verified checkpoint left it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import fence, store
from trainer.checkpoint.background_writer import Saver
from trainer.contract import events
from trainer.contract.gpu_signs import sign_of_gpu
from trainer.contract.lanes import named_together
from trainer.contract.orders import AttemptOrder, Lineage
from trainer.contract.rundir import RunDir, identify
from trainer.contract.shape import shape_of
from trainer.contract.spec import MAX_STEPS
from trainer.data import packed_rows, prepared, tokenizer
from trainer.data.background_check import BackgroundCheck
from trainer.data.loader import Loader, open_loader
from trainer.data.prepared import PreparedData, verify
from trainer.data.tokenizer import Tokenizer
from trainer.model import attention, relu2
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.runtime import device
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter
from trainer.runtime.world import World
from trainer.train import batch_size_probe, dealing, lane_count
from trainer.train import frozen_choices as choices
from trainer.train.dealing import Deal, NoLoader, StepBatches
from trainer.train.frozen_choices import Choices
from trainer.train.state import TrainState, restore_rng, rng_state, seed_rng
from trainer.train.step import Stepper


@dataclass
class Session:
    """The parts of one attempt. `expected_loss` is what the first step must report, if known.

    recheck: val bpb as the checkpoint recorded it. since_joint: the same at the first step of a
    phase, until val bpb is measured in that phase.
    world: the ranks that share the attempt. Each has a session; reporter, loader, checkpoints and
    commands are those of rank 0.
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
        """The lineage with this attempt's own checkpoints in it."""
        limits = {**self.order.lineage.limits, self.order.attempt: MAX_STEPS}
        return Lineage(limits=limits)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint, from the tensors themselves."""
        tensors = [*self.model.state_dict().values(), *self.optimizer.whole_layout().values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def accumulation(self) -> int:
        batch = self.order.plan.batch
        return batch.tokens // (self.choices.device_batch_size * batch.sequence_len)

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint of this moment exists. One that an earlier attempt wrote in the
        middle of this step's evaluations is not: the undisturbed run saved after them."""
        if self.saved_step != self.state.step:
            return False
        return self.saved_evaluated in (None, self.state.evaluated)

    def next_step_batches(self) -> StepBatches:
        """The micro-batches of one step; with several ranks, all ask for them together."""
        deal = Deal(
            world=self.world,
            rows=self.choices.device_batch_size,
            sequence_len=self.order.plan.batch.sequence_len,
            shifted=self.data.source != packed_rows.SOURCE,
            pin=self.device.type == "cuda",
            vocab_size=self.model.shape.vocab_size,
        )
        return dealing.next_step(self.loader, self.accumulation, deal)

    def state_dict(self) -> dict[str, Any]:
        """What goes into state.json."""
        return {
            "train": self.state.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": rng_state(),
        }

    def manifest(
        self, why: str, pinned: bool, next_loss: float | None
    ) -> Callable[[dict[str, store.FileEntry]], store.Manifest]:
        """describe(files) for a checkpoint of the present moment."""
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
        """Report, once, that the compiler failed and the step runs without it; later attempts
        begin without it."""
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
                    f"slower: {reason}. Once that is mended, resume with overrides.compile true",
                    step=self.state.step,
                )
            )

    def agree_on_compiler(self) -> None:
        """A compiler that fails on one rank is used on none: all ranks run the same functions."""
        compiler = self.stepper.compiler
        if self.world.size > 1 and self.choices.compile:
            failed = [reason for reason in self.world.gather(compiler.reason) if reason]
            compiler.reason = failed[0] if failed else None

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and optimizer state of a checkpoint. All ranks ask for them together; only rank 0
        gets all."""
        return dict(self.model.state_dict()), self.optimizer.collected_state()

    def close(self) -> None:
        if self.corpus_check is not None:
            self.corpus_check.close()
        self.loader.close()
        self.saver.wait()


def build(
    order: AttemptOrder,
    reporter: Reporter,
    control: Control,
    *,
    owns_run: bool = True,
    world: World | None = None,
) -> Session:
    """Set everything up and load the newest verified checkpoint.

    world: the ranks that build together; rank 0 chooses, verifies and loads, the others hear of it.
    owns_run: whether this process holds the run's lock, so that it may clear up after others.
    Raises device.DeviceMissing, DataChanged, DataError, checkpoint.Bad, torch.OutOfMemoryError.
    """
    run_dir, world = RunDir(Path(order.run_dir)), world or World()
    where = device.resolve(order.device_of(world.rank))
    world.use(where)
    _warn_if_gpu_is_idle(order, where, reporter)
    reporter.emit(events.Stage(stage="probing", detail="settling the run's choices"))
    chosen = _choose(order, run_dir, where, world)
    seed_rng(order.spec.numerics.seed)
    data = prepared.read(run_dir.data, Path(order.data_dir))
    reporter.emit(events.Stage(stage="verifying", detail="data files"))
    if world.leads:
        verify(data)
    session = _assemble(order, run_dir, control, reporter, where, chosen, data, world)
    if where.type == "cuda" and world.leads:
        session.saver.prepare(session.model.state_dict(), session.optimizer.whole_layout())
    _announce(session)
    if owns_run and world.leads:
        session.check_compiler()
        _clear_up(session)
        session.corpus_check = BackgroundCheck(data)
    _restore(session)
    return session


def _choose(order: AttemptOrder, run_dir: RunDir, where: torch.device, world: World) -> Choices:
    """Rank 0 chooses, or reads what was chosen; the others take it over."""
    chosen = None
    if world.leads:
        chosen = choices.choose(order, run_dir, where, batch_size_probe.fastest_rows)
    body = world.broadcast(chosen.model_dump(mode="json") if chosen else None)
    if chosen is None:
        chosen = Choices.model_validate(body)
        device.configure(where, threads=chosen.threads, deterministic=chosen.deterministic)
    return chosen


def _assemble(
    order: AttemptOrder,
    run_dir: RunDir,
    control: Control,
    reporter: Reporter,
    where: torch.device,
    chosen: Choices,
    data: PreparedData,
    world: World,
) -> Session:
    reporter.emit(events.Stage(stage="loading", detail="model and optimizer"))
    model = GPT(shape_of(order.spec.model), compute_dtype=chosen.dtype, device=where)
    lanes = lane_count.of_attempt(order, chosen)
    optimizer = Optimizer(model, order.plan.hyperparameters, lanes=lanes, world=world)
    if not world.leads:  # races are run on rank 0: the others wait for the winners
        chosen = Choices.model_validate(world.broadcast(None))
    stepper = Stepper(
        model,
        optimizer,
        compile=chosen.compile,
        deterministic=chosen.deterministic,
        rows=chosen.device_batch_size,
        choices_file=Path(order.data_dir) / "attention.json",
        attention_backends=chosen.attention,
        fp8=chosen.fp8,
        relu2_tile=_relu2_tile(order, chosen),
        lanes=lanes,
        world=world,
    )
    loader = _open_loader(order, chosen, data, where) if world.leads else NoLoader()
    if where.type == "cuda":
        torch.cuda.empty_cache()  # what races held is the desktop's, or another program's
    picked = {**stepper.describe_choices(), "device_batch_size": chosen.device_batch_size}
    if where.type == "cuda" and attention.DEFAULT in picked["attention"].values():
        picked["sdpa_kernel"] = attention.sdpa_kernel(model.shape, chosen.dtype, where)
    _warn_if_missing(reporter, chosen.attention, picked["attention"])
    tile = stepper.relu2_tile if order.spec.numerics.kernels == "triton" else None
    if tile != chosen.relu2:
        _report_race_winners(reporter, stepper)
    if world.leads:
        chosen = choices.freeze_winners(run_dir, chosen, picked["attention"], tile)
        world.broadcast(chosen.model_dump(mode="json"))
    saver = Saver(run_dir.checkpoints, where)
    stepper.before_update = saver.fence_update
    return Session(
        order=order,
        run_dir=run_dir,
        control=control,
        reporter=reporter,
        device=where,
        choices=chosen,
        fingerprint=device.fingerprint(where, picked),
        data=data,
        tokenizer=tokenizer.load(Path(data.tokenizer_dir)),
        model=model,
        optimizer=optimizer,
        stepper=stepper,
        loader=loader,
        state=TrainState(),
        saver=saver,
        sensors=device.Sensors.open(where),
        world=world,
    )


def _open_loader(
    order: AttemptOrder, chosen: Choices, data: PreparedData, where: torch.device
) -> Loader:
    return open_loader(
        data,
        split="train",
        rows=chosen.device_batch_size,
        sequence_len=order.plan.batch.sequence_len,
        packing=order.spec.data.packing,
        streams=order.spec.data.streams,
        pin=where.type == "cuda" and order.num_ranks == 1,  # dealt rows are pinned as they arrive
    )


def _warn_if_gpu_is_idle(order: AttemptOrder, where: torch.device, reporter: Reporter) -> None:
    """A run that did not ask for the CPU and has it, on a machine with a GPU."""
    sign = sign_of_gpu()
    if order.spec.device != "auto" or where.type != "cpu" or sign is None:
        return
    if torch.cuda.is_available():
        why = f"torch sees {torch.cuda.get_device_name(0)}, and NVIDIA's management library no GPU"
    else:
        why = f"{sign} is there, and torch {torch.__version__} sees no CUDA device"
    reporter.emit(
        events.Notice(
            level="warning",
            code="gpu_unused",
            message=f"this run trains on the CPU: {why}. See traind doctor; "
            "a run with device cpu says that it is meant so",
        )
    )


def _warn_if_missing(reporter: Reporter, wanted: dict[str, str], found: dict[str, str]) -> None:
    """An attention backend that was settled or asked for and cannot run here was replaced."""
    for window, name in wanted.items():
        if found.get(window, name) != name:
            reporter.emit(
                events.Notice(
                    level="warning",
                    code="attention_replaced",
                    message=f"attention backend {name} is not there on this device: "
                    f"{found[window]} is used instead",
                )
            )


def _relu2_tile(order: AttemptOrder, chosen: Choices) -> str:
    if order.spec.numerics.kernels != "triton":
        return relu2.COMPILED
    return chosen.relu2 or relu2.RACE


def _report_race_winners(reporter: Reporter, stepper: Stepper) -> None:
    """Kernels that were asked for: whether they are used, and why."""
    used, level = f"tile {stepper.relu2_tile} of relu2 is used", "info"
    if stepper.relu2_tile == relu2.COMPILED:
        used, level = "the compiler's are used", "warning"
    message = f"kernels triton: {used} ({stepper.relu2_reason})"
    reporter.emit(events.Notice(level=level, code="kernels", message=message))


def _announce(session: Session) -> None:
    own = identify(os.getpid())
    session.reporter.emit(
        events.Started(
            pid=os.getpid(),
            boot_id=own.boot_id if own else "",
            start_ticks=own.start_ticks if own else 0,
            device=str(session.device),
            device_name=named_together(device.name_of(session.device), session.world.size),
            versions=device.versions(),
            fingerprint=session.fingerprint,
            peak_flops=session.choices.peak_flops * session.world.size,
            peak_source=session.choices.peak_source,
        )
    )
    frozen = session.choices.model_dump(exclude={"probed"}, exclude_none=True)
    chosen = frozen | session.stepper.describe_choices()
    session.reporter.emit(events.Frozen(choices=chosen, probed=session.choices.probed))


# --- resume --------------------------------------------------------------------------------------


def _clear_up(session: Session) -> None:
    shut_out = fence.shut_out(session.run_dir.root, session.order.attempt)
    swept = [*shut_out, *store.sweep(session.run_dir.checkpoints)]
    if swept:
        print(f"removed {len(swept)} unfinished checkpoint directories: {', '.join(swept)}")


def _restore(session: Session) -> None:
    """Stand where the newest verified checkpoint of the lineage left the run, or at step 0."""
    order, reporter = session.order, session.reporter
    reporter.emit(events.Stage(stage="verifying", detail="checkpoints"))
    found = _find(session) if session.world.leads else None
    if not session.world.broadcast(found is not None):
        session.model.init_weights(order.spec.numerics.seed)
        why = "; ".join(left_out(order, 0)) or None
        reporter.emit(events.Resumed(step=0, checkpoint=None, tokens_seen=0, approximate=why))
        return
    if found is None:
        _hear_checkpoint(session)
        return
    for name, why in found.passed_over:
        reporter.emit(events.CheckpointBad(name=name, why=why))
    _load(session, found)


def _find(session: Session) -> store.FoundCheckpoint | None:
    order, directory = session.order, session.run_dir.checkpoints
    found = store.newest(directory, order.lineage, order.max_step, order.run_id)
    if found is None and order.resume_expected:
        raise store.Bad(f"no checkpoint is left in {directory}")
    return found


def _load(session: Session, found: store.FoundCheckpoint) -> None:
    order, manifest = session.order, found.manifest
    model, optimizer, saved = store.load(found.path)
    session.model.load_state_dict(model)
    if session.world.size == 1:
        session.optimizer.load_state_dict(optimizer)
    session.state.load_state_dict(saved["train"])
    session.loader.load_state_dict(saved["loader"])
    restore_rng(saved["rng"])
    session.parent, session.saved_step = found.path.name, manifest.step
    session.inexact = differences(manifest, session)
    session.expected_loss = (
        manifest.next_loss
        if manifest.next_loss is not None
        else recorded_loss(session.run_dir, manifest.attempt, manifest.step)
    )
    session.recheck = _recorded_bpb(manifest)
    _spread_checkpoint(session, saved, optimizer)
    session.reporter.emit(
        events.Resumed(
            step=manifest.step,
            checkpoint=found.path.name,
            skipped=[name for name, _ in found.passed_over],
            tokens_seen=manifest.tokens_seen,
            approximate="; ".join([*session.inexact, *left_out(order, manifest.step)]) or None,
        )
    )


def _spread_checkpoint(
    session: Session, saved: dict[str, Any], optimizer: dict[str, Tensor]
) -> None:
    """Rank 0's verified checkpoint to the other ranks, which read no file of it."""
    if session.world.size == 1:
        return
    heard = {name: saved[name] for name in ("train", "rng")}
    session.world.broadcast({**heard, "parent": session.parent, "recheck": session.recheck})
    _spread_weights(session, optimizer)


def _hear_checkpoint(session: Session) -> None:
    heard = session.world.broadcast({})
    _spread_weights(session, None)
    session.state.load_state_dict(heard["train"])
    restore_rng(heard["rng"])
    session.parent, session.recheck = heard["parent"], heard["recheck"]
    session.saved_step = session.state.step


def _spread_weights(session: Session, optimizer: dict[str, Tensor] | None) -> None:
    with torch.no_grad():
        for tensor in session.model.state_dict().values():
            session.world.spread(tensor.detach())
        session.model.bank.refresh()
    session.optimizer.spread_state(optimizer)


def _recorded_bpb(manifest: store.Manifest) -> dict[str, Any] | None:
    recorded = manifest.evaluations.get("bpb")
    return recorded and {"data": manifest.data_identity, **recorded}


def left_out(order: AttemptOrder, step: int) -> list[str]:
    """What a rewind takes out of the data from `step` on, in words: the run is then no longer the
    one that was planned, however exact its resume."""
    steps = sorted({first for first, _ in order.skip_steps if first >= step})
    return [f"the batch of step {first:,} is left out after a rewind" for first in steps]


def differences(manifest: store.Manifest, session: Session) -> list[str]:
    """Why this resume cannot be exact: fingerprint fields that differ, in words."""
    found = [manifest.approximate] if manifest.approximate and manifest.why == "import" else []
    if manifest.data_identity != session.data.identity():
        found.append("the data differs from what the checkpoint was trained on")
    now = session.fingerprint
    for key in sorted(set(manifest.fingerprint) | set(now)):
        before, after = manifest.fingerprint.get(key), now.get(key)
        if before != after and manifest.fingerprint:
            found.append(f"{key}: {before} -> {after}")
    return [text for text in found if text]


def recorded_loss(run_dir: RunDir, attempt: int, step: int) -> float | None:
    """The loss of `step` as that attempt's journal has it: what a resume from there must repeat."""
    mark = f'"kind":"step","step":{step},'.encode()
    try:
        with (run_dir.attempt(attempt) / "outbox.jsonl").open("rb") as file:
            for line in file:
                if mark in line:
                    return json.loads(line).get("loss")
    except (OSError, ValueError):
        return None
    return None


def spec_sha256(order: AttemptOrder) -> str:
    """sha256 of the parts of the spec that decide the weights."""
    spec = order.spec
    parts = [
        part.model_dump(mode="json")
        for part in (spec.model, spec.data, spec.batch, spec.optimizer, spec.numerics)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
