"""Groups in API form: members, cells over seeds, noise, gains and multipliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server import webhook_receivers
from server.database import tables
from server.domain import groups
from server.domain.states import SETTLED, State
from server.errors import Invalid
from server.queries import eta, ladders, paging
from server.scaling import multiplier, noise
from server.scaling.fit import LossPoint
from server.scaling.multiplier import Multiplier
from server.scaling.noise import Noise
from server.schemas.groups import (
    GroupCell,
    GroupDetail,
    GroupMemberView,
    GroupRequest,
    GroupSummary,
    NoiseFloor,
)
from server.schemas.page import Page
from server.settings import Settings
from trainer.contract.reasons import Reason

CellKey = tuple[int | None, str]  # depth, variant in words


@dataclass(frozen=True)
class _Baseline:
    """words: what it is. points: its FLOPs and val bpb, a mean a size. cells: {depth: values}."""

    words: str | None
    points: list[LossPoint]
    cells: dict[int | None, list[float]]


def list_groups(session: Session, after: str | None, limit: int) -> Page[GroupSummary]:
    """A page of groups, newest first."""
    table = tables.Group
    query = paging.paged(select(table), table.created_at, table.id, after, newest=True)
    rows = list(session.scalars(query.limit(min(limit, paging.MAX_PAGE) + 1)))
    shown = rows[: min(limit, paging.MAX_PAGE)]
    more = len(rows) > len(shown)
    return Page(
        data=[_summary(session, row) for row in shown],
        has_more=more,
        next=paging.cursor(shown[-1].created_at, shown[-1].id) if more else None,
    )


def detail(
    session: Session,
    settings: Settings,
    group: tables.Group,
    *,
    baseline: str | None = None,
    next_depth: int | None = None,
) -> GroupDetail:
    """A group compared. baseline: another group. next_depth: what the fit predicts; null is the
    next rung of the ladder. Raises NotFound, Invalid."""
    request = GroupRequest.model_validate(group.request)
    views, notes = _members(session, group)
    cells = _by_cell(views)
    floor = noise.pooled([_losses(members) for members in cells.values()])
    against = _baseline(session, request, cells, baseline)
    shown = [_cell(members, floor, against) for members in cells.values()]
    for view in views:
        view.compute_multiplier = _multiplier(against, view.flops, _loss(view)).value
    fits = ladders.fits(session, settings, request, views, next_depth) if request.depths else []
    return GroupDetail(
        **_summary(session, group).model_dump(),
        base=_shown_base(request.base),
        depths=request.depths,
        grid=request.grid,
        repeats=request.repeats,
        budget=request.budget,
        baseline=against.words,
        members=views,
        cells=shown,
        noise=_floor(floor, request),
        fits=fits,
        notes=[*notes, *ladders.missing(request, views)],
    )


# --- members -------------------------------------------------------------------------------------


def _summary(session: Session, group: tables.Group) -> GroupSummary:
    run, member = tables.Run, tables.GroupMember
    rows = session.execute(
        select(run.state, run.progress, run.totals)
        .join(member, member.run_id == run.id)
        .where(member.group_id == group.id)
    ).all()
    losses = [row.progress["val_bpb"] for row in rows if row.progress.get("val_bpb") is not None]
    energies = [e for row in rows if (e := row.totals.get("energy_joules")) is not None]
    return GroupSummary(
        id=group.id,
        name=group.name,
        title=group.title,
        created_at=group.created_at,
        num_members=len(rows),
        counts=dict(sorted(Counter(row.state for row in rows).items())),
        is_over=all(State(row.state) in SETTLED for row in rows),
        best_val_bpb=min(losses, default=None),
        training_seconds=sum(row.totals.get("seconds", 0.0) for row in rows),
        energy_joules=sum(energies) if energies else None,
    )


def _members(session: Session, group: tables.Group) -> tuple[list[GroupMemberView], list[str]]:
    member, run = tables.GroupMember, tables.Run
    rows = session.execute(
        select(member, run)
        .join(run, run.id == member.run_id)
        .where(member.group_id == group.id)
        .order_by(member.index)
    ).all()
    finals = _final_losses(session, [row for _, row in rows])
    usual = Counter(identity for _, identity in finals.values()).most_common(1)
    others = [r.name for _, r in rows if r.id in finals and finals[r.id][1] != usual[0][0]]
    notes = []
    if others:
        notes.append(
            f"Left out of every comparison, because their val bpb was measured on other text or "
            f"with other settings: {', '.join(others)}."
        )
    return [
        _member(m, r, finals[r.id][0] if r.id in finals and r.name not in others else None)
        for m, r in rows
    ], notes


def _member(member: tables.GroupMember, run: tables.Run, final: float | None) -> GroupMemberView:
    """final: the val bpb at the end of its plan; only with it is it a finished member."""
    per_step = run.plan["horizon"]["flops_per_token"] * run.batch_tokens
    return GroupMemberView(
        run=run.id,
        name=run.name,
        depth=member.depth,
        variant=member.variant,
        seed=member.seed,
        state=State(run.state),
        reason=Reason(run.reason),
        reason_message=run.reason_message,
        device=run.device,
        step=run.step,
        end_step=run.end_step,
        fraction=eta.fraction(run),
        is_finished=final is not None,
        loss_smooth=run.progress.get("loss_smooth"),
        val_bpb=final if final is not None else run.progress.get("val_bpb"),
        parameters=run.plan["parameters"]["total"],
        tokens_seen=run.tokens_seen,
        flops=per_step * run.step,
        flops_per_step=per_step,
        planned_flops=per_step * run.end_step,
        training_seconds=run.totals.get("seconds"),
        energy_joules=run.totals.get("energy_joules"),
        compute_multiplier=None,
    )


def _final_losses(session: Session, runs: Sequence[tables.Run]) -> dict[str, tuple[float, str]]:
    """{run: (val bpb, identity)} at the last step of runs that have completed their plan."""
    ends = {run.id: run.end_step for run in runs if run.state == State.completed}
    table = tables.Evaluation
    query = select(table.run_id, table.step, table.value, table.identity).where(
        table.run_id.in_(ends), table.kind == "bpb", table.superseded.is_(False)
    )
    return {
        run_id: (value, identity)
        for run_id, step, value, identity in session.execute(query.order_by(table.id))
        if step == ends[run_id]
    }


def _shown_base(base: dict[str, Any]) -> dict[str, Any]:
    """The base spec with the addresses of `notify` masked."""
    if not isinstance(base.get("notify"), list):
        return base
    return {**base, "notify": webhook_receivers.all_masked(base["notify"])}


# --- cells ---------------------------------------------------------------------------------------


def _by_cell(views: Sequence[GroupMemberView]) -> dict[CellKey, list[GroupMemberView]]:
    found: dict[CellKey, list[GroupMemberView]] = {}
    for view in views:
        found.setdefault((view.depth, ladders.words(view.variant)), []).append(view)
    return found


def _cell(members: Sequence[GroupMemberView], floor: Noise, against: _Baseline) -> GroupCell:
    losses, first = _losses(members), members[0]
    mean = fmean(losses) if losses else None
    flops = _flops(members)
    found = _multiplier(against, flops, mean)
    known = against.cells.get(first.depth, [])
    is_baseline = ladders.words(first.variant) == against.words
    gain = fmean(known) - mean if known and mean is not None and not is_baseline else None
    width = floor.half_width(len(known), len(losses)) if gain is not None else None
    return GroupCell(
        depth=first.depth,
        variant=first.variant,
        num_members=len(members),
        num_finished=len(losses),
        flops=flops,
        val_bpb_mean=mean,
        val_bpb_spread=noise.spread(losses),
        gain=gain,
        gain_uncertainty=width,
        is_real=abs(gain) > width if gain is not None and width is not None else None,
        compute_multiplier=found.value,
        multiplier_note=found.note,
    )


def _losses(members: Sequence[GroupMemberView]) -> list[float]:
    return [loss for view in members if (loss := _loss(view)) is not None]


def _loss(view: GroupMemberView) -> float | None:
    return view.val_bpb if view.is_finished else None


def _flops(members: Sequence[GroupMemberView]) -> float:
    """FLOPs of one finished member; planned FLOPs if there is none."""
    spent = [view.flops for view in members if view.is_finished]
    return fmean(spent) if spent else members[0].planned_flops


def _multiplier(against: _Baseline, flops: float, loss: float | None) -> Multiplier:
    if loss is None:
        return Multiplier(None, "no finished run")
    if against.words is None:
        return Multiplier(None, "no baseline: a ladder of depths, or another group, makes one")
    return multiplier.against(against.points, flops, loss)


def _baseline(
    session: Session,
    request: GroupRequest,
    cells: dict[CellKey, list[GroupMemberView]],
    other: str | None,
) -> _Baseline:
    """The other group, else the first value of each field of the grid."""
    if other is not None:
        group = groups.get(session, other)
        words, chosen = f"group {group.name}", _by_cell(_members(session, group)[0])
        if not any(_losses(members) for members in chosen.values()):
            detail = f"group {group.name} has no finished run"
            raise Invalid(f"{detail}.", errors=[{"pointer": "?baseline", "detail": detail}])
    elif request.grid:
        first = {path: values[0] for path, values in request.grid.items()}
        words = ladders.words(first)
        chosen = {key: members for key, members in cells.items() if key[1] == words}
    else:
        return _Baseline(None, [], {})
    done = {key: losses for key, members in chosen.items() if (losses := _losses(members))}
    points = [(_flops(chosen[key]), fmean(losses)) for key, losses in done.items()]
    by_depth: dict[int | None, list[float]] = {}
    for (depth, _), losses in done.items():
        by_depth.setdefault(depth, []).extend(losses)
    return _Baseline(words, points, by_depth)


def _floor(floor: Noise, request: GroupRequest) -> NoiseFloor:
    if floor.spread is not None:
        note = (
            f"Pooled over {floor.degrees_of_freedom} degrees of freedom: a difference of two "
            f"single runs is larger than chance at 95 % from "
            f"{floor.half_width(1, 1):.4f} bits per byte on."
        )
    elif request.repeats > 1:
        note = "Unknown until two seeds of one member have finished."
    else:
        note = "Unknown: one seed each. Give repeats to learn whether a difference is real."
    return NoiseFloor(spread=floor.spread, degrees_of_freedom=floor.degrees_of_freedom, note=note)
