"""Another program on a device counts after a while, and is gone after a longer one."""

from __future__ import annotations

import pytest

from server.machine.gpu_programs import GpuProgram
from server.scheduling.neighbours import (
    ARRIVES_SECONDS,
    LEAVES_SECONDS,
    Neighbours,
    Watched,
)

GAME = GpuProgram(7, "game", 2_000_000_000)
SMALL = GpuProgram(8, "browser", 100_000_000)


@pytest.fixture
def settled() -> Neighbours:
    """A device that a game has used for a while, last seen at 100 s."""
    neighbours = Neighbours()
    neighbours.update("cuda:0", [GAME], Watched(), 0.0)
    assert neighbours.update("cuda:0", [GAME], Watched(), 100.0) == "game"
    return neighbours


def test_a_program_counts_once_it_has_been_seen_for_a_while() -> None:
    neighbours = Neighbours()
    assert neighbours.update("cuda:0", [GAME], Watched(), 0.0) is None
    assert neighbours.update("cuda:0", [GAME], Watched(), ARRIVES_SECONDS - 0.1) is None
    assert neighbours.update("cuda:0", [GAME], Watched(), ARRIVES_SECONDS) == "game"


def test_one_that_comes_and_goes_at_once_never_counts() -> None:
    neighbours = Neighbours()
    for at in (0.0, 8.0, 16.0):
        assert neighbours.update("cuda:0", [GAME], Watched(), at) is None
        assert neighbours.update("cuda:0", [], Watched(), at + 4.0) is None


def test_it_is_gone_once_it_has_not_been_seen_for_longer(settled: Neighbours) -> None:
    assert settled.update("cuda:0", [], Watched(), 100.0 + LEAVES_SECONDS - 1) == "game"
    assert settled.update("cuda:0", [], Watched(), 100.0 + LEAVES_SECONDS) is None


def test_one_that_restarts_in_between_is_still_there(settled: Neighbours) -> None:
    assert settled.update("cuda:0", [], Watched(), 150.0) == "game"
    assert settled.update("cuda:0", [GAME], Watched(), 200.0) == "game"
    assert settled.update("cuda:0", [], Watched(), 200.0 + LEAVES_SECONDS - 1) == "game"


def test_turned_off_it_is_gone_at_once(settled: Neighbours) -> None:
    assert settled.update("cuda:0", [GAME], None, 101.0) is None


def test_devices_are_told_apart(settled: Neighbours) -> None:
    assert settled.update("cuda:1", [], Watched(), 101.0) is None
    assert settled.update("cuda:0", [GAME], Watched(), 102.0) == "game"


@pytest.mark.parametrize(
    ("program", "watched", "counts"),
    [
        (GAME, Watched(), True),
        (SMALL, Watched(), False),
        (SMALL, Watched(yield_to=frozenset({"browser"})), True),
        (GAME, Watched(ignore=frozenset({"game"})), False),
        (GpuProgram(1, "Xorg", 900_000_000), Watched(), False),
        (GpuProgram(1, "game", None), Watched(), False),
        (GpuProgram(1, "game", None), Watched(yield_to=frozenset({"game"})), True),
        (SMALL, Watched(least_bytes=100_000_000), True),
    ],
)
def test_which_programs_count(program: GpuProgram, watched: Watched, counts: bool) -> None:
    assert watched.counts(program) is counts
