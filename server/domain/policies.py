"""Policies of devices: hours, programs that runs yield to, power and temperature.

`policies.json` in the data directory repeats them, so that a rebuild can restore them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.tables import PlacePolicy
from server.domain.run_rows import hours_column
from server.errors import Invalid
from server.machine import power
from server.machine.devices import Device
from server.schemas.policies import PlacePolicyView
from trainer.contract.durable import write_durably
from trainer.contract.rundir import DataDir

_FILE: TypeAdapter[dict[str, PlacePolicyView]] = TypeAdapter(dict[str, PlacePolicyView])


def get(session: Session, place: str) -> PlacePolicyView:
    """The policy of a device; always open if none was set."""
    row = session.get(PlacePolicy, place)
    if row is None:
        return PlacePolicyView()
    hours = PlacePolicyView.model_validate_json(f'{{"hours": {row.hours or "null"}}}').hours
    return PlacePolicyView.model_validate(
        {"hours": hours, "neighbours": row.neighbours, "power": row.power}
    )


def put(session: Session, place: str, policy: PlacePolicyView) -> None:
    """Replace the policy of a device."""
    neighbours = policy.neighbours.model_dump(mode="json") if policy.neighbours else None
    row = session.get(PlacePolicy, place) or PlacePolicy(place=place)
    row.hours, row.neighbours = hours_column(policy.hours), neighbours
    row.power = [rule.model_dump(mode="json") for rule in policy.power] if policy.power else None
    session.add(row)


def all_of_them(session: Session) -> dict[str, PlacePolicyView]:
    """All policies, by device."""
    places = session.scalars(select(PlacePolicy.place).order_by(PlacePolicy.place))
    return {place: get(session, place) for place in places}


def write_file(paths: DataDir, known: dict[str, PlacePolicyView]) -> None:
    """Write all policies to the policy file. Raises OSError."""
    write_durably(_file(paths), _FILE.dump_json(known, indent=1, exclude_none=True, by_alias=True))


def read_file(paths: DataDir) -> dict[str, PlacePolicyView]:
    """Read the policy file that `write_file` wrote; {} without one. Raises OSError, ValueError."""
    try:
        return _FILE.validate_json(_file(paths).read_bytes())
    except FileNotFoundError:
        return {}


def problems(device: Device, policy: PlacePolicyView) -> list[str]:
    """Problems of a policy: why parts of it have no effect now, each with advice."""
    found: list[str] = []
    if policy.neighbours and device.uuid is None:
        found.append(
            f"No run on {device.device} yields to another program: programs are detected only on "
            "NVIDIA GPUs."
        )
    for rule in policy.power or ():
        if rule.power_limit_watts is not None and device.uuid is not None:
            why = power.why_not(device.device, device.uuid, rule.power_limit_watts)
            found += [why] if why else []
    return list(dict.fromkeys(found))


def require_power(device: Device, policy: PlacePolicyView) -> None:
    """Rules of power need a device that reports it. Raises Invalid."""
    if policy.power and device.uuid is None:
        detail = f"{device.device} reports neither power nor temperature, so neither can be limited"
        raise Invalid(f"{detail}.", errors=[{"pointer": "/power", "detail": detail}])


def _file(paths: DataDir) -> Path:
    return paths.root / "policies.json"
