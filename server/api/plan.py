"""POST /v1/plan: the plan of a spec or of an extend; creates nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from server.api import previews
from server.api.deps import Act, Conf, Doing, StrictRoute
from server.api.openapi import problems
from server.domain import runs
from server.domain.run_rows import plan_for
from server.errors import Invalid
from server.guard.idempotency import StoredAnswer
from server.guard.validation import explained
from server.machine import plan_context
from server.queries import eta, outlook, planned, run_views
from server.scheduling.hours import rules
from server.schemas.plans import PlanAnswer, PlanOutlook
from trainer.contract import units
from trainer.contract.extend import ExtendRequest
from trainer.contract.plan import Plan
from trainer.contract.spec import RunSpec, resolve

router = APIRouter(prefix="/v1/plan", tags=["runs"], route_class=StrictRoute)


@router.post(
    "",
    response_model=PlanAnswer,
    responses=problems(404, 406, 409) | {200: previews.OFFERED},
)
def plan(
    request: Request, body: Annotated[dict[str, Any], Body()], act: Doing, conf: Conf
) -> Response:
    """Plan a spec: parameters, batch, learning rates, FLOPs, memory, disk and time.

    With `{"run": …, "extend": {…}}`, preview an extend, as a picture with
    `Accept: image/svg+xml` or `image/png`.
    """
    picture = previews.picture_type(request, is_offered="extend" in body)

    def effect(session: Session) -> StoredAnswer:
        answer = _extend(session, act, body) if "extend" in body else _spec(session, conf, body)
        return StoredAnswer.of(answer, 200)

    response = _answer(act, effect)
    if picture is None:
        return response
    shown = PlanAnswer.model_validate_json(bytes(response.body)).extend
    return previews.picture_response(picture, response, body["run"], shown)


def _answer(act: Act, effect: Callable[[Session], StoredAnswer]) -> Response:
    """Compute the plan; in a write transaction only if the response is to be stored."""
    if act.key:
        return act.once(effect)
    with act.db.read() as session:
        return effect(session).response()


def _spec(session: Session, conf: Conf, body: dict[str, Any]) -> PlanAnswer:
    with explained(body, RunSpec):
        spec = resolve({"name": "plan", **plan_context.with_bundle(conf, body)})
    made = plan_for(spec, plan_context.context(session, conf, spec))
    shown = run_views.shown_spec(spec.model_dump(mode="json"))
    expected = _outlook(session, spec, made)
    return PlanAnswer(spec=shown, plan=made, planned=planned.of_plan(made), outlook=expected)


def _outlook(session: Session, spec: RunSpec, made: Plan) -> PlanOutlook:
    """Expected end, energy and cost if the run started now and waited only for hours."""
    places, seconds = spec.rank_devices or [spec.device], made.eta.total
    end = outlook.of_hours(session, rules(spec.hours), places, seconds, time.time())
    watts = outlook.watts_of_device(session, places[0])
    bill = outlook.bill(session, watts[0] if watts else None, seconds, end)
    return PlanOutlook(
        finish_at=end.finish_at,
        energy_joules=bill.energy_joules,
        cost=bill.cost,
        energy_source=f"{units.watts(watts[0])}, the mean of run {watts[1]}" if watts else None,
    )


def _extend(session: Session, act: Act, body: dict[str, Any]) -> PlanAnswer:
    unknown = sorted(body.keys() - {"run", "extend"})
    if unknown or not isinstance(body.get("run"), str):
        detail = (
            f"unknown keys besides run and extend: {', '.join(unknown)}" if unknown else "required"
        )
        pointer = f"/{unknown[0]}" if unknown else "/run"
        raise Invalid(
            "The plan of an extend takes only run (an id or name) and extend.",
            errors=[{"pointer": pointer, "detail": detail}],
        )
    row = run_views.get_run(session, body["run"])
    with _below("/extend"), explained(body["extend"], ExtendRequest):
        ask = ExtendRequest.model_validate(body["extend"])
        shown = runs.extend(session, row, ask, act.now, dry_run=True).preview
        if shown is None:
            return PlanAnswer()
        update = {"eta": eta.of_extend(session, row, shown)}
        return PlanAnswer(extend=shown.model_copy(update=update))


@contextmanager
def _below(prefix: str) -> Iterator[None]:
    """Prefix the error pointers of a part of the body with that part's pointer."""
    try:
        yield
    except Invalid as error:
        for item in error.errors:
            item["pointer"] = prefix + item["pointer"]
        raise
