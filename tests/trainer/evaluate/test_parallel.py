"""Work in several threads at once: in order, not ahead of itself, and without a trace."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

import pytest
import torch

from trainer.evaluate.parallel import side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    assert list(side_by_side(work, range(20), workers)) == [i * i for i in range(20)]


def test_pieces_run_at_once_with_one_thread_each() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def work(item: int) -> int:
        meeting.wait()  # passes only when three are here
        return torch.get_num_threads()

    assert list(side_by_side(work, range(6), 3)) == [1] * 6


def test_no_item_is_asked_for_long_before_it_is_worked_on() -> None:
    """So that a stop is answered soon: two at work, one that waits."""
    done: list[int] = []
    asked: list[int] = []

    def items() -> object:
        for item in range(12):
            asked.append(item)
            assert item - len(done) <= 3
            yield item

    for item in side_by_side(lambda item: item, items(), 2):  # type: ignore[arg-type]
        done.append(item)
    assert asked == done == list(range(12))


def test_what_was_begun_before_a_stop_is_not_lost() -> None:
    stop = threading.Event()
    items = takewhile(lambda _: not stop.is_set(), range(100))
    done = []
    for item in side_by_side(lambda item: item, items, 2):
        done.append(item)
        if item == 4:
            stop.set()
    assert done == list(range(len(done)))
    assert 5 <= len(done) <= 8


@pytest.mark.parametrize("fails_at", [0, 7, 19])
def test_an_error_reaches_the_caller_and_leaves_no_thread(fails_at: int) -> None:
    before = torch.get_num_threads(), threading.active_count()

    def work(item: int) -> int:
        if item == fails_at:
            raise ValueError(f"piece {item}")
        return item

    with pytest.raises(ValueError, match=f"piece {fails_at}"):
        list(side_by_side(work, range(20), 2))
    assert (torch.get_num_threads(), threading.active_count()) == before


def test_threads_that_begin_later_have_as_many_as_before() -> None:
    """torch gives a new thread the number that was set last, in whichever thread."""
    torch.set_num_threads(2)
    list(side_by_side(lambda item: item, range(4), 2))
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2
