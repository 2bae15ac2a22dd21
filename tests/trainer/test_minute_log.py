"""The line that the trainer's log gets every minute."""

from __future__ import annotations

import pytest

from trainer.train.minute_log import MinuteLog


def test_a_line_a_minute_with_loss_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    log = MinuteLog(130_000, clock=lambda: now)
    for step in range(1000, 1100):
        now += 1.2
        log.add(step, 3.21009, 65_536)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # 120 seconds
    assert lines[0].endswith("step 1,050/130,000, loss 3.2101, 54,613 tok/s, 42 h 59 min left")
    assert lines[1].endswith("step 1,100/130,000, loss 3.2101, 54,613 tok/s, 42 h 58 min left")


def test_nothing_before_the_first_minute(capsys: pytest.CaptureFixture[str]) -> None:
    log = MinuteLog(10, clock=lambda: 0.0)
    for step in range(10):
        log.add(step, 1.0, 10)
    assert capsys.readouterr().out == ""
