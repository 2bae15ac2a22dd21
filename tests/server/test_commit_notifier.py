"""The wakeup that wakes streams: from any thread, to every waiter, bounded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from server.errors import Busy
from server.events.commit_notifier import Feed


def test_a_commit_in_another_thread_wakes_every_waiter() -> None:
    async def scene() -> list[int]:
        feed = Feed()
        waiters = [asyncio.create_task(feed.wait(0, 10)) for _ in range(50)]
        await asyncio.sleep(0)
        threading.Thread(target=feed.notify).start()
        woken = await asyncio.gather(*waiters)
        assert feed.num_waiting == 0
        return woken

    assert asyncio.run(scene()) == [1] * 50


def test_what_was_missed_is_answered_at_once_and_silence_times_out() -> None:
    async def scene() -> None:
        feed = Feed()
        feed.notify()
        assert await feed.wait(0, 10) == 1
        assert await feed.wait(1, 0.01) == 1
        assert feed.num_waiting == 0

    asyncio.run(scene())


def test_f44_a_reader_that_goes_away_leaves_nothing_behind() -> None:
    async def scene() -> None:
        feed = Feed()
        waiter = asyncio.create_task(feed.wait(0, 60))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert feed.num_waiting == 0

    asyncio.run(scene())


def test_f45_the_number_of_waiters_is_bounded() -> None:
    async def scene() -> None:
        feed = Feed(max_waiters=2)
        waiters = [asyncio.create_task(feed.wait(0, 60)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await feed.wait(0, 60)
        feed.notify()
        await asyncio.gather(*waiters)

    asyncio.run(scene())


def test_waiters_of_a_loop_that_has_ended_do_no_harm() -> None:
    feed = Feed()

    async def leave() -> None:
        feed._enter(0)

    asyncio.run(leave())
    feed.notify()
    assert feed.version == 1
