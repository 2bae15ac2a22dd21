"""Setup of an attempt: its device, choices, data, model, optimizer, step and loader."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from trainer.checkpoint import fence, store
from trainer.checkpoint.background_writer import Saver
from trainer.contract import events
from trainer.contract.gpu_signs import sign_of_gpu
from trainer.contract.lanes import named_together
from trainer.contract.orders import AttemptOrder
from trainer.contract.rundir import RunDir, identify
from trainer.contract.shape import shape_of
from trainer.data import prepared, tokenizer
from trainer.data.background_check import BackgroundCheck
from trainer.data.loader import Loader, open_loader
from trainer.data.prepared import PreparedData, verify
from trainer.model import attention, relu2
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.runtime import device
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter
from trainer.runtime.world import World
from trainer.train import batch_size_probe, lane_count, resume
from trainer.train import frozen_choices as choices
from trainer.train.batch_broadcast import NoLoader
from trainer.train.frozen_choices import Choices
from trainer.train.session import Session
from trainer.train.state import TrainState, seed_rng
from trainer.train.step import Stepper


def build(
    order: AttemptOrder,
    reporter: Reporter,
    control: Control,
    *,
    owns_run: bool = True,
    world: World | None = None,
) -> Session:
    """Build the session of an attempt and load the newest verified checkpoint.

    world: the ranks that build together; rank 0 chooses, verifies and loads, and sends the results.
    owns_run: True if this process holds the run's lock, so that it may remove leftovers of others.
    Raises device.NoSuchDevice, DataChanged, DataError, checkpoint.Bad, torch.OutOfMemoryError.
    """
    run_dir, world = RunDir(Path(order.run_dir)), world or World()
    where = device.resolve(order.device_of(world.rank))
    world.use(where)
    _warn_if_gpu_is_idle(order, where, reporter)
    reporter.emit(events.Stage(stage="probing", detail="choosing batch size and kernels"))
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
    resume.restore(session)
    return session


def _choose(order: AttemptOrder, run_dir: RunDir, where: torch.device, world: World) -> Choices:
    """Make or read the frozen choices on rank 0, and send them to the other ranks."""
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
    if not world.leads:  # rank 0 autotunes; the other ranks wait for the winners
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
        torch.cuda.empty_cache()  # give autotuning's memory back to other programs
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
    """Warn if a run trains on the CPU without having requested it, on a machine with a GPU."""
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
            "set device cpu if this is intended",
        )
    )


def _warn_if_missing(reporter: Reporter, wanted: dict[str, str], found: dict[str, str]) -> None:
    """Warn about a frozen or requested attention backend that cannot run here and was replaced."""
    for window, name in wanted.items():
        if found.get(window, name) != name:
            reporter.emit(
                events.Notice(
                    level="warning",
                    code="attention_replaced",
                    message=f"attention backend {name} is not available on this device: "
                    f"{found[window]} is used instead",
                )
            )


def _relu2_tile(order: AttemptOrder, chosen: Choices) -> str:
    if order.spec.numerics.kernels != "triton":
        return relu2.COMPILED
    return chosen.relu2 or relu2.RACE


def _report_race_winners(reporter: Reporter, stepper: Stepper) -> None:
    """Report if the requested kernels are used, and why."""
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


def _clear_up(session: Session) -> None:
    shut_out = fence.shut_out(session.run_dir.root, session.order.attempt)
    swept = [*shut_out, *store.sweep(session.run_dir.checkpoints)]
    if swept:
        print(f"removed {len(swept)} unfinished checkpoint directories: {', '.join(swept)}")
