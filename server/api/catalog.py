"""What interfaces offer: metrics, verbs, states, presets; none of them keeps a list of its own."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from server.api.deps import StrictRoute
from server.domain.states import VERBS
from server.schemas import Catalog, MetricView, State, VerbView
from trainer.contract.metrics import METRICS
from trainer.contract.spec import PRESETS

router = APIRouter(prefix="/v1/catalog", tags=["system"], route_class=StrictRoute)


@router.get("")
def catalog() -> Catalog:
    """The registry of metrics, the verbs with the states they are legal in, states and presets."""
    verbs = sorted(set().union(*VERBS.values()))
    return Catalog(
        metrics=[MetricView.model_validate(asdict(metric)) for metric in METRICS],
        verbs=[VerbView(verb=v, legal_in=[s for s in State if v in VERBS[s]]) for v in verbs],
        states=list(State),
        presets=PRESETS,
    )
