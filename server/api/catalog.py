"""GET /v1/catalog: metrics, evaluations, verbs, states, reasons, presets and what fields accept."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict
from functools import cache

from fastapi import APIRouter

from server.api import field_rules
from server.api.deps import StrictRoute
from server.api.openai_dialect import CompletionRequest
from server.domain.states import ENDED, REPEATS, REQUESTS, SETTLED, VERBS, YIELDS
from server.schemas.catalog import (
    Catalog,
    EvaluationTypeView,
    ExtendModeView,
    MetricView,
    ReasonView,
    VerbView,
)
from server.schemas.groups import GroupRequest
from server.schemas.runs import ResumeRequest
from server.schemas.states import State
from trainer.contract.evaluations import EVALUATIONS
from trainer.contract.extend import EXTEND_LENGTHS, JUMP, ExtendRequest
from trainer.contract.jobs import SampleParams
from trainer.contract.metrics import JOULES_PER_KWH, METRICS
from trainer.contract.reasons import Reason
from trainer.contract.schedule import EXTEND_MODES
from trainer.contract.spec import PRESETS, RunSpec
from trainer.contract.spec.data import SOURCES_OF_FIELD
from trainer.contract.spec.training import HORIZON_UNITS

router = APIRouter(prefix="/v1/catalog", tags=["system"], route_class=StrictRoute)
BODIES = {
    "spec": RunSpec, "extend": ExtendRequest, "resume": ResumeRequest, "group": GroupRequest,
    "sample": SampleParams, "completion": CompletionRequest,
}  # fmt: skip


@router.get("")
def catalog() -> Catalog:
    """Vocabulary of the API, for clients.

    The registries of metrics and evaluations, verbs and requests with the states they are legal in,
    states, reasons, presets, and what the fields of a spec, an extend, a resume, a group, a sample
    and a completion accept.
    """
    return _catalog()


@cache
def _catalog() -> Catalog:
    verbs = sorted(set().union(*VERBS.values()))
    return Catalog(
        metrics=[MetricView.model_validate(asdict(metric)) for metric in METRICS],
        evaluations=[EvaluationTypeView.model_validate(asdict(one)) for one in EVALUATIONS],
        verbs=[_verb(v, {s for s in State if v in VERBS[s]}) for v in verbs],
        requests=[_verb(v, legal) for v, legal in REQUESTS.items()],
        states=list(State),
        settled_states=[state for state in State if state in SETTLED],
        ended_states=[state for state in State if state in ENDED],
        reasons=[ReasonView(code=r, noun=r.noun, yields=YIELDS.get(r)) for r in Reason],
        learning_rate_jump=JUMP,
        kilowatt_hour_joules=JOULES_PER_KWH,
        extend_modes=[ExtendModeView.model_validate(asdict(mode)) for mode in EXTEND_MODES],
        extend_lengths=EXTEND_LENGTHS,
        horizons=HORIZON_UNITS,
        data_sources={field: list(read) for field, read in SOURCES_OF_FIELD.items()},
        presets=PRESETS,
        choices={body: dict(field_rules.choices(model)) for body, model in BODIES.items()},
        bounds={body: field_rules.bounds(model) for body, model in BODIES.items()},
    )


def _verb(name: str, legal: Set[State]) -> VerbView:
    repeated = REPEATS.get(name, frozenset())
    return VerbView(
        verb=name,
        legal_in=[s for s in State if s in legal],
        changes_in=[s for s in State if s in legal - repeated],
    )
