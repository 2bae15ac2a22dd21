"""Plans: the arithmetic of a spec, and the preview of an extend."""

from __future__ import annotations

from pydantic import BaseModel

from server.schemas.metrics import PlannedCurve
from trainer.contract.extend import ExtendPreview
from trainer.contract.plan import Plan
from trainer.contract.spec import RunSpec


class PlanOutlook(BaseModel):
    """Expected end, energy and cost of a run that started now, under its hours and its device's."""

    finish_at: float | None
    """Expected end of a run that started now, in unix seconds."""
    energy_joules: float | None
    """Expected energy of the whole run, in joules."""
    cost: float | None
    """Cost of that energy at the tariff or energy price, in their currency."""
    energy_source: str | None
    """Run whose mean power is used."""


class PlanAnswer(BaseModel):
    """A spec's plan, or the preview of an extend."""

    spec: RunSpec | None = None
    plan: Plan | None = None
    planned: PlannedCurve | None = None
    outlook: PlanOutlook | None = None
    """Expected end, energy and cost."""
    extend: ExtendPreview | None = None
    """Preview of an extend."""
