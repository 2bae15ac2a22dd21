"""Groups: runs created from one base spec and its variations, all or none."""

from __future__ import annotations

import copy
import itertools
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events, preflight, runs, states
from server.domain.states import State
from server.errors import Conflict, Invalid, NameTaken, NotFound
from server.guard.validation import explain
from server.machine import devices, plan_context
from server.schemas.groups import GroupRequest
from server.settings import Settings
from trainer.contract.plan import Plan
from trainer.contract.spec import NAME_PATTERN, NumericsSpec, RunSpec

PRIORITY = -10  # of members: below ordinary runs, unless the base sets another
TICK_SECONDS = 1e-6  # seconds between the members' creation times, which keep them in order
MAX_NAME = 64


@dataclass(frozen=True)
class PlannedMember:
    """A planned member run. places: JSON pointer into the request, by varied dotted field."""

    depth: int | None
    variant: dict[str, Any]
    seed_offset: int
    places: dict[str, str] = field(default_factory=dict)

    def words(self) -> str:
        """The member's differences as text: 'd8, optimizer.matrix_lr=0.02, seed +1'."""
        parts = [f"d{self.depth}"] if self.depth is not None else []
        parts += [f"{path}={_plain(value)}" for path, value in self.variant.items()]
        parts += [f"seed +{self.seed_offset}"] if self.seed_offset else []
        return ", ".join(parts) or "the base"


def create(session: Session, request: GroupRequest, settings: Settings, now: float) -> tables.Group:
    """Create the group and all its runs. Raises Invalid naming the member, NameTaken; the caller's
    transaction then keeps none of them.
    """
    if session.scalar(select(tables.Group.id).where(tables.Group.name == request.name)):
        raise NameTaken(
            f"a group named {request.name} already exists",
            hint="Choose another name, or delete that group.",
            errors=[{"pointer": "/name", "detail": "the name is in use"}],
        )
    group = tables.Group(
        id=f"grp_{secrets.token_hex(8)}",
        name=request.name,
        title=request.title,
        request=request.model_dump(mode="json"),
        created_at=now,
    )
    session.add(group)
    session.flush()
    all_of_them = list(members(request))
    for index, member in enumerate(all_of_them):
        _add(session, group, request, member, index, settings, now + index * TICK_SECONDS)
    session.flush()
    message = f"group {group.name} was created: {len(all_of_them)} runs"
    events.record(session, "group", message, data={"group": group.id}, now=now)
    return group


def members(request: GroupRequest) -> Iterator[PlannedMember]:
    """The planned members: by depth, so that a ladder begins with its cheapest runs; then grid,
    seeds."""
    depths: list[tuple[int, int | None]] = list(enumerate(request.depths or [None]))
    grid = itertools.product(*(list(enumerate(values)) for values in request.grid.values()))
    for (at, depth), chosen, offset in itertools.product(depths, grid, range(request.repeats)):
        pairs = list(zip(request.grid, chosen, strict=True))
        places = {path: f"/grid/{path}/{index}" for path, (index, _) in pairs}
        if depth is not None:
            places["model.depth"] = f"/depths/{at}"
        yield PlannedMember(depth, {path: value for path, (_, value) in pairs}, offset, places)


def member_body(request: GroupRequest, member: PlannedMember) -> dict[str, Any]:
    """The spec that one member is created from."""
    body = {"priority": PRIORITY, **copy.deepcopy(request.base), "name": request.name}
    if member.depth is not None:
        _set(body, "model.depth", member.depth)
    for path, value in member.variant.items():
        _set(body, path, value)
    if request.repeats > 1:
        _set(body, "numerics.seed", base_seed(request) + member.seed_offset)
    if request.budget is not None:
        body["budget"] = request.budget.model_dump()
    return body


def base_seed(request: GroupRequest) -> int:
    numerics = request.base.get("numerics")
    given = numerics.get("seed") if isinstance(numerics, dict) else None
    return given if isinstance(given, int) else NumericsSpec().seed


def get(session: Session, ref: str) -> tables.Group:
    """The group of an id or name. Raises NotFound."""
    table = tables.Group
    key = table.id if ref.startswith("grp_") else table.name
    found = session.scalar(select(table).where(key == ref))
    if found is None:
        raise NotFound(f"There is no group {ref[:80]!r}.", hint="`traind group list` lists them.")
    return found


def runs_of(session: Session, group: tables.Group) -> list[tables.Run]:
    """The group's runs that were not deleted, in order of creation."""
    member, run = tables.GroupMember, tables.Run
    query = select(run).join(member, member.run_id == run.id).where(member.group_id == group.id)
    return list(session.scalars(query.order_by(member.index)))


def cancel(session: Session, group: tables.Group, now: float, door: str | None = None) -> int:
    """Cancel every run that may still train. Returns their number."""
    count = 0
    for run in runs_of(session, group):
        if State(run.state) not in states.ENDED:
            count += runs.request_cancel(session, run, now, door=door)
    return count


def delete(session: Session, group: tables.Group, now: float, *, with_runs: bool) -> list[Path]:
    """Delete the group; its runs are kept, unless their deletion is requested and all have ended.

    Returns the directories of deleted runs, relative to the data directory. Raises Conflict.
    """
    removed: list[Path] = []
    if with_runs:
        found = runs_of(session, group)
        _require_settled(found, group)
        removed = [runs.delete(session, run, now) for run in found]
    for run in runs_of(session, group):
        run.version += 1  # its run.json names the group
    message = f"group {group.name} was deleted" + (f" with {len(removed)} runs" if removed else "")
    events.record(session, "group", message, data={"group": group.id}, now=now)
    session.delete(group)
    session.flush()
    return removed


# --- parts ---------------------------------------------------------------------------------------


def _add(
    session: Session,
    group: tables.Group,
    request: GroupRequest,
    member: PlannedMember,
    index: int,
    settings: Settings,
    now: float,
) -> None:
    try:
        body = member_body(request, member)
        body["name"] = _name(request, member, index)
        run = _run(session, body, settings, now)
    except Invalid as error:
        raise _placed(error, member, index, request) from error
    except NameTaken as error:
        raise NameTaken(
            error.detail,
            hint="Choose another name for the group, or delete that run.",
            errors=[{"pointer": "/name", "detail": error.detail}],
        ) from error
    session.add(
        tables.GroupMember(
            run_id=run.id,
            group_id=group.id,
            index=index,
            depth=member.depth,
            variant=member.variant,
            seed=run.spec["numerics"]["seed"],
        )
    )


def _run(session: Session, body: dict[str, Any], settings: Settings, now: float) -> tables.Run:
    """Create a run like POST /v1/runs. Raises Invalid, NameTaken."""
    asked = plan_context.with_bundle(settings, body)
    context = plan_context.context_for(session, settings, asked)
    try:
        run = runs.create(session, asked, context=context, now=now)
    except ValidationError as error:
        raise explain(error, asked, RunSpec) from None
    spec, plan = RunSpec.model_validate(run.spec), Plan.model_validate(run.plan)
    preflight.require(session, spec, plan, devices.discover())
    preflight.require_tariff(spec.hours, settings.tariff)
    return run


def _set(body: dict[str, Any], path: str, value: Any) -> None:
    """body["a"]["b"] = value for 'a.b'. A horizon is one choice: the other ones are dropped."""
    *parents, last = path.split(".")
    if parents == ["horizon"]:
        body["horizon"] = {}
    for key in parents:
        below = body.get(key)
        body[key] = below if isinstance(below, dict) else {}
        body = body[key]
    body[last] = value


def _placed(error: Invalid, member: PlannedMember, index: int, request: GroupRequest) -> Invalid:
    """The error of a member, with pointers into the request."""
    where = f"member {index + 1} of {request.num_members} ({member.words()})"
    errors = [
        {"pointer": _pointer(item["pointer"], member), "detail": f"{where}: {item['detail']}"}
        for item in error.errors
    ] or [{"pointer": "/base", "detail": f"{where}: {error.detail}"}]
    return Invalid(f"{where}: {error.detail}", errors=errors, hint=error.hint)


def _pointer(pointer: str, member: PlannedMember) -> str:
    dotted = pointer.removeprefix("/").replace("/", ".")
    for path, place in member.places.items():
        if dotted == path or dotted.startswith(f"{path}."):
            return place
    if dotted == "name" or dotted.startswith("budget"):
        return pointer
    return f"/base{pointer}"


def _name(request: GroupRequest, member: PlannedMember, index: int) -> str:
    """The member's name, from its values where valid (ladder-d8-matrix_lr0.02-s1), else its
    number."""
    parts = [request.name]
    parts += [f"d{member.depth}"] if member.depth is not None else []
    parts += [f"{p.rsplit('.', 1)[-1]}{_plain(v)}" for p, v in member.variant.items()]
    parts += [f"s{member.seed_offset}"] if request.repeats > 1 else []
    name = "-".join(parts)
    last_words = {path.rsplit(".", 1)[-1] for path in member.variant}
    is_clear = len(last_words) == len(member.variant) and len(parts) > 1
    if is_clear and len(name) <= MAX_NAME and re.match(NAME_PATTERN, name):
        return name
    number = f"-{index + 1:03d}"
    return request.name[: MAX_NAME - len(number)] + number


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _require_settled(found: list[tables.Run], group: tables.Group) -> None:
    for run in found:
        if State(run.state) not in states.SETTLED:
            raise Conflict(
                f"run {run.name} of group {group.name} is {run.state}",
                hint="Cancel the group first, or delete it without its runs.",
                state=run.state,
            )
