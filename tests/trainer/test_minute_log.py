"""The line that the trainer's log gets every minute."""

from __future__ import annotations

import pytest

from trainer.contract import units
from trainer.contract.orders import AttemptOrder
from trainer.contract.plan import make_plan, time_left
from trainer.contract.shape import shape_of
from trainer.contract.spec import resolve
from trainer.train.minute_log import MinuteLog

SPEC = resolve({"name": "d12", "preset": "rtx4070-d12"})
PLAN = make_plan(SPEC)
END = PLAN.horizon.steps
ORDER = AttemptOrder.model_construct(spec=SPEC, plan=PLAN, end_step=END)


def test_a_line_a_minute_with_loss_speed_and_the_eta_of_the_daemon(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    log = MinuteLog(ORDER, clock=lambda: now)
    for step in range(1000, 1100):
        now += 1.2
        log.add(step, 3.21009, 65_536)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # 120 seconds
    for line, step in zip(lines, (1050, 1100), strict=True):
        rate = 65_536 / 1.2
        left = time_left(SPEC, shape_of(SPEC.model), PLAN.batch, step, END, rate)
        assert left.evaluation > 0  # more than the steps alone take
        shown = units.duration(left.total)
        assert line.endswith(
            f"step {step:,}/{END:,}, loss 3.2101, {units.rate(rate)}, {shown} left"
        )


def test_nothing_before_the_first_minute(capsys: pytest.CaptureFixture[str]) -> None:
    log = MinuteLog(ORDER, clock=lambda: 0.0)
    for step in range(10):
        log.add(step, 1.0, 10)
    assert capsys.readouterr().out == ""
