"""Plans: the arithmetic of a spec, and the preview of an extend."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from server.schemas.metrics import PlannedCurve
from trainer.contract.extend import ExtendPreview
from trainer.contract.plan import Plan
from trainer.contract.spec import RunSpec


class PlanRequest(BaseModel):
    """Either a spec, or {"run": id or name, "extend": {...}}. Validated by hand: the two differ."""

    model_config = ConfigDict(extra="allow")


class PlanOutlook(BaseModel):
    """When a run that started now would end under its hours and those of its device, with what
    energy and cost. energy_source: the run whose mean power was taken."""

    finish_at: float | None
    energy_joules: float | None
    cost: float | None
    energy_source: str | None


class PlanAnswer(BaseModel):
    """A spec's plan, or the preview of an extend."""

    spec: RunSpec | None = None
    plan: Plan | None = None
    planned: PlannedCurve | None = None
    outlook: PlanOutlook | None = None
    extend: ExtendPreview | None = None
