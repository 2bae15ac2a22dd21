"""The decision who starts, yields and waits: one test for each law, then random worlds."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

import pytest

from server.scheduling.decide import (
    MINIMUM_RUN_SECONDS,
    START_LEAD_SECONDS,
    Decision,
    Opening,
    Place,
    SchedulingVerdict,
    WaitCause,
    Workload,
    decide,
)

CARD, OTHER = Place("cuda:0"), Place("cuda:1")
NOW = 1_000_000.0


def workload(
    name: str, *, order: float = 0, places: tuple[str, ...] = ("cuda:0",), **rest
) -> Workload:  # type: ignore[no-untyped-def]
    return Workload(name, places, (order,), **rest)


def running(name: str, *on: str, **rest) -> Workload:  # type: ignore[no-untyped-def]
    rest.setdefault("places", on)
    return workload(name, holds=on, count=len(on), held_since=NOW - 3_600, **rest)


class TestQueue:
    def test_a_free_place_goes_to_the_first_in_the_queue(self) -> None:
        found = decide([CARD], [workload("b", order=2), workload("a", order=1)], NOW)
        assert found.grants == {"a": ("cuda:0",)}
        assert found.waits == {"b": SchedulingVerdict(WaitCause.queue, ("a",))}

    def test_priority_comes_before_the_queue(self) -> None:
        found = decide([CARD], [workload("a", order=1), workload("b", order=2, priority=1)], NOW)
        assert list(found.grants) == ["b"]

    def test_a_held_place_is_given_to_nobody(self) -> None:
        found = decide([CARD], [running("a", "cuda:0"), workload("b")], NOW)
        assert (found.grants, found.yields) == ({}, {})
        assert found.waits["b"] == SchedulingVerdict(WaitCause.queue, ("a",))

    def test_a_want_takes_the_place_it_prefers(self) -> None:
        either = workload("a", places=("cuda:1", "cuda:0"))
        assert decide([CARD, OTHER], [either], NOW).grants == {"a": ("cuda:1",)}

    def test_a_place_that_this_machine_lacks_is_waited_for(self) -> None:
        found = decide([CARD], [workload("a", places=("cuda:7",))], NOW)
        assert found.waits["a"].cause is WaitCause.unavailable


class TestGangs:
    def test_a_gang_gets_all_its_places_or_none(self) -> None:
        gang = workload("g", places=("cuda:0", "cuda:1"), count=2)
        assert decide([CARD, OTHER], [gang], NOW).grants == {"g": ("cuda:0", "cuda:1")}
        found = decide([CARD, OTHER], [gang, running("a", "cuda:0")], NOW)
        assert found.grants == {}
        assert found.waits["g"].by == ("a",)

    def test_what_is_free_is_kept_for_a_gang_that_waits(self) -> None:
        gang = workload("g", order=1, places=("cuda:0", "cuda:1"), count=2)
        late = workload("b", order=2, places=("cuda:1",))
        assert decide([CARD, OTHER], [gang, late, running("a", "cuda:0")], NOW).grants == {}

    def test_a_gang_that_waits_keeps_no_more_than_it_needs(self) -> None:
        three = [CARD, OTHER, Place("cuda:2")]
        gang = workload("g", order=1, places=("cuda:0", "cuda:1"), count=2)
        late = workload("b", order=2, places=("cuda:2",))
        assert "b" in decide(three, [gang, late, running("a", "cuda:0")], NOW).grants

    def test_a_gang_displaces_as_few_as_it_can(self) -> None:
        four = [Place(f"cuda:{i}") for i in range(4)]
        gang = workload("g", places=tuple(p.name for p in four), count=2, priority=1)
        workloads = [
            gang,
            running("pair", "cuda:0", "cuda:1"),
            running("x", "cuda:2"),
            running("y", "cuda:3"),
        ]
        assert list(decide(four, workloads, NOW).yields) == ["pair"]


class TestDisplacement:
    def test_strictly_higher_priority_displaces(self) -> None:
        found = decide([CARD], [running("a", "cuda:0"), workload("b", priority=1)], NOW)
        assert found.yields == {"a": SchedulingVerdict(WaitCause.displaced, ("b",))}
        assert found.grants == {}  # only when the place is really free

    def test_equal_priority_does_not(self) -> None:
        assert decide([CARD], [running("a", "cuda:0"), workload("b")], NOW).yields == {}

    def test_one_that_is_not_preemptible_stays(self) -> None:
        holder = running("a", "cuda:0", is_preemptible=False)
        assert decide([CARD], [holder, workload("b", priority=100)], NOW).yields == {}

    def test_a_job_that_comes_first_displaces_nobody(self) -> None:
        job = workload("j", priority=1_000, may_displace=False)
        assert decide([CARD], [running("a", "cuda:0"), job], NOW).yields == {}

    def test_one_that_has_just_begun_stays_for_a_while(self) -> None:
        begun = replace(running("a", "cuda:0"), held_since=NOW - 10)
        found = decide([CARD], [begun, workload("b", priority=1)], NOW)
        assert found.yields == {}
        until = NOW - 10 + MINIMUM_RUN_SECONDS
        assert found.waits["b"] == SchedulingVerdict(WaitCause.queue, ("a",), until)
        assert found.wake_at == until
        assert found.wake_at is not None
        assert decide([CARD], [begun, workload("b", priority=1)], found.wake_at).yields

    def test_nobody_is_displaced_for_a_gang_that_cannot_start(self) -> None:
        gang = workload("g", places=("cuda:0", "cuda:1"), count=2, priority=1)
        fixed = running("fixed", "cuda:1", is_preemptible=False)
        assert decide([CARD, OTHER], [gang, running("a", "cuda:0"), fixed], NOW).yields == {}

    def test_nobody_is_displaced_twice_over_for_one_want(self) -> None:
        leaving = replace(running("a", "cuda:0"), is_leaving=True)
        either = workload("b", places=("cuda:0", "cuda:1"), priority=1)
        assert decide([CARD, OTHER], [leaving, running("c", "cuda:1"), either], NOW).yields == {}

    def test_a_place_that_one_leaves_serves_one_want(self) -> None:
        leaving = replace(running("a", "cuda:0"), is_leaving=True)
        both = ("cuda:0", "cuda:1")
        workloads = [
            leaving,
            running("c", "cuda:1"),
            workload("x", places=both, priority=2),
            workload("y", places=both, priority=1),
        ]
        assert decide([CARD, OTHER], workloads, NOW).yields == {
            "c": SchedulingVerdict(WaitCause.displaced, ("y",))
        }

    def test_the_least_important_makes_way(self) -> None:
        workloads = [
            running("a", "cuda:0", priority=1),
            running("b", "cuda:1", priority=0),
            workload("c", priority=2, places=("cuda:0", "cuda:1")),
        ]
        assert list(decide([CARD, OTHER], workloads, NOW).yields) == ["b"]


class TestHours:
    def test_nothing_starts_where_it_is_shut(self) -> None:
        shut = Place("cuda:0", Opening(False, opens_at=NOW + 60))
        found = decide([shut], [workload("a")], NOW)
        assert found.waits == {"a": SchedulingVerdict(WaitCause.hours, until=NOW + 60)}
        assert found.wake_at == NOW + 60

    def test_nor_outside_its_own_hours(self) -> None:
        found = decide([CARD], [workload("a", opening=Opening(False, opens_at=NOW + 60))], NOW)
        assert found.waits["a"].cause is WaitCause.hours

    def test_nor_shortly_before_it_shuts(self) -> None:
        def ending(seconds: float) -> Opening:
            return Opening(True, closes_at=NOW + seconds, opens_at=NOW + 80_000)

        short, enough = ending(START_LEAD_SECONDS - 1), ending(START_LEAD_SECONDS)
        assert decide([CARD], [workload("a", opening=short)], NOW).grants == {}
        assert decide([CARD], [workload("a", opening=enough)], NOW).grants
        assert decide([replace(CARD, opening=short)], [workload("a")], NOW).grants == {}
        slow = workload("a", opening=enough, save_seconds=1_000)
        assert decide([CARD], [slow], NOW).grants == {}

    def test_a_run_leaves_in_time_for_its_save(self) -> None:
        closing = Opening(True, closes_at=NOW + 90, opens_at=NOW + 9_000)
        early = decide([CARD], [running("a", "cuda:0", opening=closing, save_seconds=30)], NOW)
        assert (early.yields, early.wake_at) == ({}, NOW + 60)
        due = decide([CARD], [running("a", "cuda:0", opening=closing, save_seconds=30)], NOW + 60)
        assert due.yields == {"a": SchedulingVerdict(WaitCause.hours, until=NOW + 9_000)}

    def test_nobody_is_displaced_for_one_that_could_not_stay(self) -> None:
        closing = Opening(True, closes_at=NOW + START_LEAD_SECONDS + 10)
        workloads = [
            running("a", "cuda:0", save_seconds=60),
            workload("b", priority=1, opening=closing),
        ]
        assert decide([CARD], workloads, NOW).yields == {}


class TestNeighbours:
    def test_a_neighbour_makes_a_run_leave(self) -> None:
        found = decide([replace(CARD, neighbour="steam")], [running("a", "cuda:0")], NOW)
        assert found.yields == {"a": SchedulingVerdict(WaitCause.neighbour, ("steam",))}

    def test_and_is_waited_for(self) -> None:
        found = decide([replace(CARD, neighbour="steam")], [workload("a")], NOW)
        assert found.waits == {"a": SchedulingVerdict(WaitCause.neighbour, ("steam",))}

    def test_one_that_is_not_preemptible_stays(self) -> None:
        holder = running("a", "cuda:0", is_preemptible=False)
        assert decide([replace(CARD, neighbour="steam")], [holder], NOW).yields == {}


@pytest.mark.no_cover  # it measures time, which tracing adds to
def test_the_heads_of_a_long_queue_are_decided_in_two_milliseconds() -> None:
    places = [Place(f"cuda:{i}") for i in range(8)]
    names = tuple(p.name for p in places)
    workloads = [workload(f"w{i}", order=i, places=names, priority=i % 7) for i in range(32)]
    workloads += [running(f"r{i}", f"cuda:{i}") for i in range(8)]
    fastest = min(_seconds(places, workloads) for _ in range(50))
    assert fastest < 0.002


def _seconds(places: list[Place], workloads: list[Workload]) -> float:
    """Of this thread's processor time: a busy machine adds to the clock's."""
    began = time.thread_time()
    decide(places, workloads, NOW)
    return time.thread_time() - began


# --- random worlds -------------------------------------------------------------------------------

TICK = 60.0


@dataclass
class Member:
    """A run of the simulated world: what it workloads, and how much work is left (seconds)."""

    workload: Workload
    left: float
    leaves_at: float | None = None


@dataclass
class World:
    """Devices with hours and neighbours, and runs that come, train, yield and end."""

    random: random.Random
    now: float = NOW
    places: list[Place] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    finished: int = 0
    displaced: int = 0

    def tick(self) -> None:
        places = [self.seen(place) for place in self.places]
        workloads = [replace(m.workload, opening=self.opening(m.workload.id)) for m in self.members]
        found = decide(places, workloads, self.now)
        check_laws(found, places, workloads, self.now)
        shuffled = self.random.sample(workloads, len(workloads))
        if self.random.random() < 0.1:
            assert decide(self.random.sample(places, len(places)), shuffled, self.now) == found
        for member in list(self.members):
            self.live(member, found)
        self.now += TICK

    def live(self, member: Member, found: Decision) -> None:
        workload = member.workload
        if workload.id in found.grants:
            member.workload = replace(
                workload, holds=found.grants[workload.id], held_since=self.now
            )
        elif workload.id in found.yields:
            self.displaced += found.yields[workload.id].cause is WaitCause.displaced
            member.workload = replace(workload, is_leaving=True)
            member.leaves_at = self.now + self.random.choice([TICK, workload.save_seconds])
        elif member.leaves_at is not None and self.now >= member.leaves_at:
            member.workload, member.leaves_at = replace(workload, holds=(), is_leaving=False), None
        elif workload.holds and not workload.is_leaving:
            member.left -= TICK
            if member.left <= 0:
                self.members.remove(member)
                self.finished += 1

    def opening(self, name: str) -> Opening:
        """Three of four are always open; the others half of each day."""
        if hash_of(name) % 4:
            return Opening()
        day, half = 86_400.0, 43_200.0
        since = (self.now + hash_of(name)) % day
        start = self.now - since
        if since < half:
            return Opening(True, closes_at=start + half, opens_at=start + day)
        return Opening(False, opens_at=start + day)

    def seen(self, place: Place) -> Place:
        used = hash_of(place.name) % 3 == 0 and int(self.now // 7_200) % 5 == 0
        return replace(place, opening=self.opening(place.name), neighbour="game" if used else None)


def hash_of(name: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 100_003


def check_laws(found: Decision, places: list[Place], workloads: list[Workload], now: float) -> None:
    by_id = {w.id: w for w in workloads}
    known = {p.name: p for p in places}
    held = {name for w in workloads for name in w.holds}
    given = [name for names in found.grants.values() for name in names]
    assert len(given) == len(set(given)), "a place was given twice"
    assert not held & set(given), "a held place was given"
    for name, got in found.grants.items():
        assert len(got) == by_id[name].count, "a gang was split"
        assert set(got) <= set(by_id[name].places)
        for opening in (by_id[name].opening, *(known[g].opening for g in got)):
            assert opening.is_open
            closes = opening.closes_at
            assert closes is None or closes - now >= START_LEAD_SECONDS
        assert all(known[g].neighbour is None for g in got)
    for name, verdict in found.yields.items():
        assert by_id[name].holds
        assert not by_id[name].is_leaving
        if verdict.cause is WaitCause.displaced:
            winner = by_id[verdict.by[0]]
            assert winner.priority > by_id[name].priority
            assert set(by_id[name].holds) & set(winner.places), "a useless displacement"
    check_nothing_holds_up_the_first(found, known, workloads, now)
    everyone = found.grants.keys() | found.waits.keys()
    assert everyone == {w.id for w in workloads if not w.holds}, "each that waits hears why, once"


def check_nothing_holds_up_the_first(
    found: Decision, places: dict[str, Place], workloads: list[Workload], now: float
) -> None:
    """Whoever comes first of those that wait for others gets all that lower priorities can give."""
    waiting = [w for w in workloads if w.id in found.waits]
    waiting = [w for w in waiting if found.waits[w.id].cause is WaitCause.queue]
    if not waiting:
        return
    first = min(waiting, key=lambda w: (-w.priority, w.order))
    given = {name for names in found.grants.values() for name in names}
    holder = {name: w for w in workloads for name in w.holds}

    def has_time(opening: Opening, start: float) -> bool:
        lead = max(START_LEAD_SECONDS, 2 * first.save_seconds)
        return opening.is_open and (opening.closes_at is None or opening.closes_at - start >= lead)

    def could_be_had(name: str) -> bool:
        other = holder.get(name)
        if other is None or other.is_leaving or other.id in found.yields:
            return True
        is_lower = other.priority < first.priority and other.is_preemptible
        openings = (first.opening, *(places[n].opening for n in other.holds))
        lasts = all(has_time(opening, now + other.save_seconds) for opening in openings)
        return is_lower and lasts and now - other.held_since >= MINIMUM_RUN_SECONDS

    def comes(name: str) -> bool:
        other = holder.get(name)
        return other is None or other.is_leaving or other.id in found.yields

    usable = [
        name
        for name in first.places
        if places[name].neighbour is None
        and has_time(places[name].opening, now)
        and name not in given
    ]
    if sum(could_be_had(name) for name in usable) >= first.count:
        assert sum(comes(name) for name in usable) >= first.count, (first, found)


@pytest.mark.parametrize("seed", range(20))
def test_in_random_worlds_every_law_holds_and_everyone_finishes(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance, places=[Place(f"cuda:{i}") for i in range(chance.randint(1, 8))])
    names = [p.name for p in world.places]
    for number in range(chance.randint(5, 25)):
        count = min(chance.choice([1, 1, 1, 2, 4]), len(names))
        made = Workload(
            f"run-{number}",
            tuple(chance.sample(names, chance.randint(count, len(names)))),
            (float(number),),
            count=count,
            priority=chance.choice([0, 0, 0, 5, -5]),
            is_preemptible=chance.random() < 0.8,
            save_seconds=chance.choice([10.0, 60.0, 200.0]),
        )
        world.members.append(Member(made, chance.uniform(600, 12_000)))
    total = len(world.members)
    for _ in range(60_000):
        if not world.members:
            break
        world.tick()
    assert world.finished == total, [m.workload for m in world.members]
