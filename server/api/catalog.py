"""GET /v1/catalog: the metrics, verbs, states, presets and choices that interfaces list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from typing import Any, Literal, get_args, get_origin

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.deps import StrictRoute
from server.domain.states import ENDED, REQUESTS, SETTLED, VERBS
from server.schemas.catalog import Catalog, EvaluationTypeView, MetricView, VerbView
from server.schemas.runs import ResumeRequest
from server.schemas.states import State
from trainer.contract.evaluations import EVALUATIONS
from trainer.contract.extend import JUMP, ExtendRequest
from trainer.contract.metrics import METRICS
from trainer.contract.spec import PRESETS, RunSpec

router = APIRouter(prefix="/v1/catalog", tags=["system"], route_class=StrictRoute)
BODIES = {"spec": RunSpec, "extend": ExtendRequest, "resume": ResumeRequest}


@router.get("")
def catalog() -> Catalog:
    """Vocabulary of the API, for clients.

    The registries of metrics and evaluations, verbs and requests with the states they are legal in,
    states, presets, and the accepted values of enumerated fields of a spec, an extend and a resume.
    """
    return _catalog()


@cache
def _catalog() -> Catalog:
    verbs = sorted(set().union(*VERBS.values()))
    return Catalog(
        metrics=[MetricView.model_validate(asdict(metric)) for metric in METRICS],
        evaluations=[EvaluationTypeView.model_validate(asdict(one)) for one in EVALUATIONS],
        verbs=[VerbView(verb=v, legal_in=[s for s in State if v in VERBS[s]]) for v in verbs],
        requests=[
            VerbView(verb=v, legal_in=[s for s in State if s in legal])
            for v, legal in REQUESTS.items()
        ],
        states=list(State),
        settled_states=[state for state in State if state in SETTLED],
        ended_states=[state for state in State if state in ENDED],
        learning_rate_jump=JUMP,
        presets=PRESETS,
        choices={body: dict(_choices(model)) for body, model in BODIES.items()},
    )


def _choices(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """(pointer, accepted values) of each enumerated field of `model`."""
    for name, field in model.model_fields.items():
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _choices(part, f"{prefix}/{name}")
        words = [
            word
            for part in _parts(field.annotation)
            if get_origin(part) is Literal
            for word in get_args(part)
        ]
        if words:
            yield f"{prefix}/{name}", words


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, without Annotated; any other type is its own only member."""
    if annotation is not None and get_origin(annotation) is not Literal and get_args(annotation):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation
