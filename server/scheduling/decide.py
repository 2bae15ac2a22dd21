"""The scheduler's decision: which runs start, yield and wait, from places and workloads. Pure.

A place is a device, or a slot such as the one for work on the CPU; it holds one workload at a time.
A workload is a run or a job that holds places or waits for them. No state is kept between calls: a
run that yields is paused like any other, returns to the queue, and is decided again from the inputs
of that time.

Invariants, each held by a test:
- no place is given twice, nor while it is held;
- a workload gets all the places it needs, or none;
- nothing starts on a closed place, nor less than START_LEAD_SECONDS before it closes;
- a workload yields only for one of strictly higher priority that can then start;
- a workload of higher priority never waits for one of lower priority that it may displace;
- waiting workloads start in order of priority, then of the queue;
- the same input gives the same answer, in any order of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

START_LEAD_SECONDS = 600.0  # nothing starts that would have to yield sooner
MINIMUM_RUN_SECONDS = 600.0  # before a run may be displaced: a start costs a minute or two


class WaitCause(StrEnum):
    """Why a workload yields or waits."""

    displaced = "displaced"  # one of higher priority needs the place
    hours = "hours"  # its own hours, or those of the place
    neighbour = "neighbour"  # another program uses the device
    heat = "heat"  # the device is hotter than its ceiling
    queue = "queue"  # others are ahead in the queue
    unavailable = "unavailable"  # this machine has no such place


@dataclass(frozen=True)
class Opening:
    """Opening state: is_open, closes_at, opens_at (the next opening), in seconds since the epoch.

    Always open: is_open and no closes_at.
    """

    is_open: bool = True
    closes_at: float | None = None
    opens_at: float | None = None


ALWAYS = Opening()


@dataclass(frozen=True)
class Place:
    """A device or a slot. neighbour: name of another program that uses it. too_hot: its
    temperature as text, None below the ceiling."""

    name: str
    opening: Opening = ALWAYS
    neighbour: str | None = None
    too_hot: str | None = None


@dataclass(frozen=True)
class Workload:
    """A run or a job that holds places or waits for them.

    places: acceptable ones, the preferred one first. count: how many of them it needs at once.
    holds: those it holds now. order: its position in the queue. held_since: start time.
    save_seconds: time from the request to yield until its places are free.
    may_displace: True if its priority counts against running workloads.
    """

    id: str
    places: tuple[str, ...]
    order: tuple[float, ...]
    count: int = 1
    holds: tuple[str, ...] = ()
    priority: int = 0
    is_preemptible: bool = True
    may_displace: bool = True
    is_leaving: bool = False
    held_since: float = -math.inf
    save_seconds: float = 60.0
    opening: Opening = ALWAYS


@dataclass(frozen=True)
class SchedulingVerdict:
    """Why a workload yields or waits. by: ids of workloads, or the neighbour's name. until: seconds
    since the epoch, if known."""

    cause: WaitCause
    by: tuple[str, ...] = ()
    until: float | None = None


@dataclass
class Decision:
    """Result of `decide`. grants: {workload: places on which it may start now}. yields, waits:
    {workload: why}. wake_at: when time alone changes the decision, in seconds since the epoch."""

    grants: dict[str, tuple[str, ...]] = field(default_factory=dict)
    yields: dict[str, SchedulingVerdict] = field(default_factory=dict)
    waits: dict[str, SchedulingVerdict] = field(default_factory=dict)
    wake_at: float | None = None


def decide(places: Iterable[Place], workloads: Iterable[Workload], now: float) -> Decision:
    """Decide at `now` (seconds since the epoch) which workloads start, yield and wait."""
    return _Table(places, workloads, now).decide()


class _Table:
    """State of one decision: the free places, and the workloads for which others are reserved."""

    def __init__(self, places: Iterable[Place], workloads: Iterable[Workload], now: float) -> None:
        self.now = now
        self.places = {place.name: place for place in places}
        self.workloads = sorted(workloads, key=lambda w: (-w.priority, not w.holds, w.order, w.id))
        self.holders = {name: workload for workload in self.workloads for name in workload.holds}
        self.kept: dict[str, str] = {}  # {place: the waiting workload for which it is reserved}
        self.decision = Decision()

    def decide(self) -> Decision:
        holding = [workload for workload in self.workloads if workload.holds]
        for workload in holding:
            self._check_hours(workload)
        for workload in self.workloads:
            if not workload.holds:
                self._place(workload)
        return self.decision

    def _check_hours(self, workload: Workload) -> None:
        """Make a workload yield if its places or its own hours are about to close."""
        verdict = self._closing(workload)
        if verdict is not None and not workload.is_leaving:
            self.decision.yields[workload.id] = verdict

    def _closing(self, workload: Workload) -> SchedulingVerdict | None:
        for name in workload.holds:
            place = self.places.get(name)
            if place is not None and place.neighbour is not None and workload.is_preemptible:
                return SchedulingVerdict(WaitCause.neighbour, (place.neighbour,))
            if place is not None and place.too_hot is not None:
                return SchedulingVerdict(WaitCause.heat, (place.too_hot,))
        for opening in self._openings(workload, workload.holds):
            if not opening.is_open:
                return SchedulingVerdict(WaitCause.hours, until=opening.opens_at)
            if opening.closes_at is not None:
                leave_at = opening.closes_at - workload.save_seconds
                if self.now >= leave_at:
                    return SchedulingVerdict(WaitCause.hours, until=opening.opens_at)
                self._wake(leave_at)
        return None

    def _openings(self, workload: Workload, names: Sequence[str]) -> list[Opening]:
        return [workload.opening, *(self.places[n].opening for n in names if n in self.places)]

    def _place(self, workload: Workload) -> None:
        """Grant a workload, or reserve free devices and preempt others for it, or make it wait."""
        if refusal := self._refusal(workload, workload.opening):
            self.decision.waits[workload.id] = refusal
            return
        usable = [name for name in workload.places if self._is_usable(workload, name)]
        free = [name for name in usable if name not in self.holders and name not in self.kept]
        if len(free) >= workload.count:
            self._grant(workload, free[: workload.count])
        elif len(usable) >= workload.count:
            self._wait_for_holders(workload, usable, free)
        else:
            self.decision.waits[workload.id] = self._shut(workload)

    def _grant(self, workload: Workload, names: Sequence[str]) -> None:
        self.decision.grants[workload.id] = tuple(names)
        self.kept |= dict.fromkeys(names, workload.id)

    def _wait_for_holders(
        self, workload: Workload, usable: Sequence[str], free: Sequence[str]
    ) -> None:
        missing = workload.count - len(free)
        leaving = [n for n in usable if self._is_leaving(n) and n not in self.kept]
        victims, until = self._victims(workload, usable, missing - len(leaving)), None
        if victims is None:  # waits in order; its free places are reserved until the rest are free
            until = self._yields_at(workload, usable) if missing == 1 else None
            others = [n for n in usable if n in self.holders and n not in self.kept]
            self._keep(workload, [*free, *leaving, *others][: workload.count])
        else:
            taken = [name for victim in victims for name in victim.holds if name in usable]
            self._keep(workload, [*free, *leaving, *taken][: workload.count])
            for victim in victims:
                self.decision.yields[victim.id] = SchedulingVerdict(
                    WaitCause.displaced, (workload.id,)
                )
        holders = dict.fromkeys(self.holders[n].id for n in usable if n in self.holders)
        first = dict.fromkeys(self.kept[n] for n in usable if n in self.kept)
        ahead = tuple(i for i in [*holders, *first] if i != workload.id)
        self.decision.waits[workload.id] = SchedulingVerdict(
            WaitCause.queue, tuple(dict.fromkeys(ahead)), until
        )

    def _yields_at(self, workload: Workload, usable: Sequence[str]) -> float | None:
        """Time at which the first of the recently started runs may be preempted."""
        held = [self.holders[n] for n in usable if n in self.holders and n not in self.kept]
        times = [
            holder.held_since + MINIMUM_RUN_SECONDS
            for holder in held
            if workload.may_displace
            and holder.priority < workload.priority
            and holder.is_preemptible
            and not holder.is_leaving
        ]
        return min((at for at in times if at > self.now), default=None)

    def _victims(
        self, workload: Workload, usable: Sequence[str], missing: int
    ) -> list[Workload] | None:
        """The fewest and least important workloads that must yield; None if that is not enough."""
        if missing <= 0:
            return []
        if not workload.may_displace:
            return None
        held = dict.fromkeys(self.holders[n] for n in usable if n in self.holders)
        candidates = [holder for holder in held if self._may_displace(workload, holder)]
        gain = {c.id: sum(n in usable and n not in self.kept for n in c.holds) for c in candidates}
        cost = {c.id: (c.priority, c.save_seconds, -c.held_since, c.id) for c in candidates}
        single = [c for c in candidates if gain[c.id] >= missing]
        if single:
            return [min(single, key=lambda c: cost[c.id])]
        chosen: list[Workload] = []
        for candidate in sorted(candidates, key=lambda c: (c.priority, -gain[c.id], cost[c.id])):
            chosen.append(candidate)
            missing -= gain[candidate.id]
            if missing <= 0:
                return chosen
        return None

    def _may_displace(self, workload: Workload, holder: Workload) -> bool:
        if holder.priority >= workload.priority or not holder.is_preemptible or holder.is_leaving:
            return False
        if holder.id in self.decision.yields:
            return False
        start = self.now + holder.save_seconds
        if any(
            self._is_too_late(workload, o, start) for o in self._openings(workload, holder.holds)
        ):
            return False
        ripe_at = holder.held_since + MINIMUM_RUN_SECONDS
        if self.now < ripe_at:
            self._wake(ripe_at)
            return False
        return True

    def _is_leaving(self, name: str) -> bool:
        holder = self.holders.get(name)
        return holder is not None and (holder.is_leaving or holder.id in self.decision.yields)

    def _keep(self, workload: Workload, names: Sequence[str]) -> None:
        for name in names:
            self.kept.setdefault(name, workload.id)

    def _is_usable(self, workload: Workload, name: str) -> bool:
        place = self.places.get(name)
        if place is None or place.neighbour or place.too_hot:
            return False
        return not self._refusal(workload, place.opening)

    def _refusal(self, workload: Workload, opening: Opening) -> SchedulingVerdict | None:
        """Why a workload cannot start under these hours now; None if it can."""
        if opening.is_open and not self._is_too_late(workload, opening, self.now):
            return None
        self._wake(opening.opens_at)
        return SchedulingVerdict(WaitCause.hours, until=opening.opens_at)

    def _is_too_late(self, workload: Workload, opening: Opening, start: float) -> bool:
        """True if a workload started at that time would have to yield again at once."""
        lead = max(START_LEAD_SECONDS, 2 * workload.save_seconds)
        return opening.closes_at is not None and opening.closes_at - start < lead

    def _shut(self, workload: Workload) -> SchedulingVerdict:
        """Why too few of a workload's places are usable."""
        found = [self.places[name] for name in workload.places if name in self.places]
        if len(found) < workload.count:
            return SchedulingVerdict(WaitCause.unavailable)
        neighbours = tuple(place.neighbour for place in found if place.neighbour)
        if neighbours:
            return SchedulingVerdict(WaitCause.neighbour, neighbours)
        hot = tuple(place.too_hot for place in found if place.too_hot)
        if hot:
            return SchedulingVerdict(WaitCause.heat, hot)
        opens = [p.opening.opens_at for p in found if p.opening.opens_at is not None]
        return SchedulingVerdict(WaitCause.hours, until=min(opens, default=None))

    def _wake(self, at: float | None) -> None:
        if at is not None and at > self.now:
            earlier = self.decision.wake_at
            self.decision.wake_at = at if earlier is None else min(earlier, at)
