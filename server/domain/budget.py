"""Budget of a run: minutes, tokens and energy after which it is saved and paused."""

from __future__ import annotations

from server.database import tables
from server.errors import Conflict
from trainer.contract.metrics import JOULES_PER_KWH


def spent(run: tables.Run) -> str | None:
    """Sentence naming the exhausted part of the budget; None while the run may train.

    Repeated steps count, since they took time. A run at the end of its plan may finish.
    """
    budget, totals = run.spec.get("budget"), run.totals
    if not budget or run.step >= run.end_step:
        return None
    used = {
        "minutes": totals.get("seconds", 0.0) / 60,
        "tokens": totals.get("tokens", 0),
        "kwh": totals.get("energy_joules", 0.0) / JOULES_PER_KWH,
    }
    for key, units in (("minutes", "minutes"), ("tokens", "tokens"), ("kwh", "kWh")):
        limit = budget.get(key)
        if limit is not None and used[key] >= limit:
            return f"Its budget of {_number(limit)} {units} is spent at step {run.step:,}."
    return None


def _number(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def require_left(run: tables.Run) -> None:
    """Raises Conflict if the run has no budget left for a step."""
    sentence = spent(run)
    if sentence is not None:
        raise Conflict(
            f"run {run.name} cannot be resumed: {sentence[:1].lower()}{sentence[1:]}",
            hint="Raise its budget with PATCH, or remove it: "
            f'PATCH /v1/runs/{run.name} {{"budget": null}}.',
            state=run.state,
        )
