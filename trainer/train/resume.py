"""Resume: restores a session from the newest verified checkpoint of its lineage."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import store
from trainer.contract import events
from trainer.contract.orders import AttemptOrder
from trainer.contract.rundir import RunDir
from trainer.train.session import Session
from trainer.train.state import restore_rng


def restore(session: Session) -> None:
    """Restore the session from the newest verified checkpoint of the lineage, else at step 0."""
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
    """Send rank 0's verified checkpoint to the other ranks, which read no files."""
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
            session.world.broadcast_tensor(tensor.detach())
        session.model.bank.refresh()
    session.optimizer.spread_state(optimizer)


def _recorded_bpb(manifest: store.Manifest) -> dict[str, Any] | None:
    recorded = manifest.evaluations.get("bpb")
    return recorded and {"data": manifest.data_identity, **recorded}


def left_out(order: AttemptOrder, step: int) -> list[str]:
    """Batches that a rewind skips from `step` on, in words: the run then differs from the planned
    one, however exact its resume."""
    steps = sorted({first for first, _ in order.skip_steps if first >= step})
    return [f"the batch of step {first:,} is left out after a rewind" for first in steps]


def differences(manifest: store.Manifest, session: Session) -> list[str]:
    """Causes of an inexact resume: fingerprint fields that differ, in words."""
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
    """The loss of `step` from that attempt's journal, which a resume from there must repeat."""
    mark = f'"kind":"step","step":{step},'.encode()
    try:
        with (run_dir.attempt(attempt) / "outbox.jsonl").open("rb") as file:
            for line in file:
                if mark in line:
                    return json.loads(line).get("loss")
    except (OSError, ValueError):
        return None
    return None
