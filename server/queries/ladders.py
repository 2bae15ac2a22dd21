"""Scaling-law fits over a ladder of depths, their prediction for the next one, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from server.domain import groups
from server.domain.groups import PlannedMember
from server.machine import plan_context
from server.scaling import fit
from server.scaling.fit import Fit
from server.schemas.groups import GroupMemberView, GroupRequest, LadderFit, LadderPrediction
from server.settings import Settings
from trainer.contract.metrics import JOULES_PER_KWH
from trainer.contract.plan import CannotPlan, Plan, PlanContext, make_plan
from trainer.contract.spec import resolve


def words(variant: dict[str, Any]) -> str:
    """A variant as one text: 'optimizer.matrix_lr=0.02, batch.tokens=2048'; '' for the base."""
    return ", ".join(f"{path}={value}" for path, value in variant.items())


def fits(
    session: Session,
    settings: Settings,
    request: GroupRequest,
    views: Sequence[GroupMemberView],
    next_depth: int | None = None,
) -> list[LadderFit]:
    """A fit for each variant that has finished at enough depths."""
    found: list[LadderFit] = []
    for members in _by_variant(views).values():
        done = [view for view in members if view.is_finished]
        points = [(view.flops, view.val_bpb or 0.0) for view in done]
        if fit.can_fit(points):
            rung = _next_rung(session, settings, request, done, next_depth)
            found.append(_shown(fit.fit(points), members, done, rung))
    return found


def missing(request: GroupRequest, views: Sequence[GroupMemberView]) -> list[str]:
    """Reasons why there is no fit yet, one sentence per variant."""
    if request.depths is None:
        return []
    if len(request.depths) < fit.MIN_SIZES:
        return [f"No fit: it needs at least {fit.MIN_SIZES} depths."]
    sentences = []
    for name, members in _by_variant(views).items():
        done = {view.flops for view in members if view.is_finished}
        if len(done) < fit.MIN_SIZES:
            of = f" of {name}" if name else ""
            sentences.append(
                f"No fit{of} yet: {len(done)} of at least {fit.MIN_SIZES} depths have finished."
            )
    return sentences


def _by_variant(views: Sequence[GroupMemberView]) -> dict[str, list[GroupMemberView]]:
    found: dict[str, list[GroupMemberView]] = {}
    for view in views:
        found.setdefault(words(view.variant), []).append(view)
    return found


def _shown(
    found: Fit,
    members: Sequence[GroupMemberView],
    done: Sequence[GroupMemberView],
    rung: tuple[int, Plan, PlanContext] | None,
) -> LadderFit:
    law = found.law
    return LadderFit(
        variant=members[0].variant,
        form=fit.FORM,
        source=fit.SOURCE,
        num_points=len(done),
        points=[(view.flops, view.val_bpb or 0.0, view.depth or 0) for view in done],
        e=law.e,
        a=law.a,
        alpha=law.alpha,
        reference_flops=law.reference_flops,
        e_interval=found.e_interval,
        alpha_interval=found.alpha_interval,
        confidence=fit.CONFIDENCE,
        residual_spread=found.residual_spread,
        prediction=_prediction(found, done, rung[0], rung[1]) if rung else None,
        not_told=list(_not_told(found, members, done, rung)),
    )


# --- the next rung -------------------------------------------------------------------------------


def _next_rung(
    session: Session,
    settings: Settings,
    request: GroupRequest,
    done: Sequence[GroupMemberView],
    depth: int | None,
) -> tuple[int, Plan, PlanContext] | None:
    """(depth, plan, what is known of the machine); None where no such run can be planned."""
    depths = sorted({view.depth for view in done if view.depth is not None})
    depth = depth or depths[-1] + (depths[-1] - depths[-2])
    body = groups.member_body(request, PlannedMember(depth, done[0].variant, 0))
    try:
        spec = resolve(body)
        context = plan_context.context(session, settings, spec)
        return depth, make_plan(spec, context), context
    except (ValidationError, CannotPlan):
        return None


def _prediction(
    found: Fit, done: Sequence[GroupMemberView], depth: int, plan: Plan
) -> LadderPrediction:
    # counted as for members: the trained steps, not the plan before rounding
    flops = float(plan.horizon.flops_per_token) * plan.batch.tokens * plan.horizon.steps
    seconds, joules, source = _cost(done, flops, plan)
    return LadderPrediction(
        depth=depth,
        flops=flops,
        tokens=plan.horizon.steps * plan.batch.tokens,
        parameters=plan.parameters.total,
        val_bpb=found.law.at(flops),
        val_bpb_interval=found.interval_at(flops),
        hours=seconds / 3600 if seconds is not None else None,
        kwh=joules / JOULES_PER_KWH if joules is not None else None,
        time_source=source,
    )


def _cost(
    done: Sequence[GroupMemberView], flops: float, plan: Plan
) -> tuple[float | None, float | None, str]:
    """(seconds, joules, source) of N FLOPs: at the measured speed of this shape, or else
    at that of the deepest members."""
    deepest = max(view.depth or 0 for view in done)
    timed = [v for v in done if v.depth == deepest and v.training_seconds and v.flops]
    if plan.eta.source.startswith("measured"):
        seconds, source = plan.eta.training, plan.eta.source
    elif timed:
        seconds = flops * fmean((v.training_seconds or 0.0) / v.flops for v in timed)
        source = f"the FLOP/s of depth {deepest}, measured in {len(timed)} of its runs"
    else:
        return None, None, "no run of this ladder has a measured time"
    watts = [
        joules / spent
        for view in timed
        if (joules := view.energy_joules) is not None and (spent := view.training_seconds)
    ]
    return seconds, seconds * fmean(watts) if watts else None, source


# --- limitations of the fit ------------------------------------------------------------------


def _not_told(
    found: Fit,
    members: Sequence[GroupMemberView],
    done: Sequence[GroupMemberView],
    rung: tuple[int, Plan, PlanContext] | None,
) -> Iterator[str]:
    yield (
        "Every depth has the learning rates and schedule of the base, scaled by its rules: the fit "
        "does not know whether they are the best ones at each depth."
    )
    degrees = found.degrees_of_freedom
    yield (
        f"{len(done)} points for {fit.NUM_PARAMETERS} parameters leave {degrees} "
        f"{'degree' if degrees == 1 else 'degrees'} of freedom, from which the intervals come."
    )
    sizes = {view.depth for view in done}
    if len(done) == len(sizes):
        yield "There is one seed per depth, so the noise of each point is unknown."
    if found.law.a == 0:
        yield (
            "The val bpb does not fall as the FLOPs grow: the fit is a constant, alpha means "
            "nothing, and longer runs or other learning rates are needed for a prediction."
        )
    elif not found.is_curvature_known:
        yield "The points do not determine E and alpha apart: one lies at an end of its range."
    left = [view.name for view in members if not view.is_finished]
    if left:
        yield f"Not in the fit, because they have not finished: {', '.join(left)}."
    yield from _about_the_path(done)
    if rung is not None:
        yield from _about_the_rung(done, rung[1], rung[2])


def _about_the_path(done: Sequence[GroupMemberView]) -> Iterator[str]:
    ratios = [view.tokens_seen / view.parameters for view in done]
    if max(ratios) > 1.2 * min(ratios):
        yield (
            f"Tokens per parameter range from {min(ratios):.1f} to {max(ratios):.1f}: the fit "
            "follows this path of models and data, not the compute-optimal one."
        )
    batches = sorted({round(v.tokens_seen / v.step) for v in done if v.step})
    if len(batches) > 1:
        yield f"The batch grows from {batches[0]:,} to {batches[-1]:,} tokens along the ladder."
    devices = sorted({view.device for view in done})
    if len(devices) > 1:
        yield f"The runs were trained on different devices: {', '.join(devices)}."


def _about_the_rung(
    done: Sequence[GroupMemberView], plan: Plan, context: PlanContext
) -> Iterator[str]:
    largest = max(view.flops for view in done)
    flops = float(plan.horizon.flops_per_token) * plan.batch.tokens * plan.horizon.steps
    if flops > largest:
        yield f"The next depth lies {flops / largest:.1f} times beyond the largest run in FLOPs."
    tokens = plan.horizon.steps * plan.batch.tokens
    if context.corpus_tokens is None:
        yield "The size of the corpus is not known: a pass that repeats text teaches less."
    elif tokens > context.corpus_tokens:
        seen = max(view.tokens_seen for view in done) / context.corpus_tokens
        yield (
            f"It reads the corpus {tokens / context.corpus_tokens:.1f} times, the largest run so "
            f"far {seen:.1f} times: repeated text teaches less, which the fit does not know."
        )
    if plan.warnings:
        yield f"Of the next depth's plan: {plan.warnings[0]}"
