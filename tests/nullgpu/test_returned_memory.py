"""GPU memory that an evaluation used beyond a step is free again for other programs."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(300)]

GIGABYTE = 1 << 30


def evaluations() -> dict[str, Any]:
    """Bytes that the allocator holds after each kind of evaluation, each of which left 1 GB."""
    from types import SimpleNamespace
    from typing import cast

    import torch

    from trainer.contract import commands
    from trainer.train import evaluations
    from trainer.train.session import Session

    reporter = SimpleNamespace(emit=lambda _: None)
    session = cast(Session, SimpleNamespace(device=torch.device("cuda", 0), reporter=reporter))
    none = commands.Evaluate(id="c", bpb=False, core=False)
    ways = {
        "due": lambda: evaluations.measure(session, []),
        "asked for": lambda: evaluations.measure_on_request(session, none),
    }
    found = {}
    for name, way in ways.items():
        torch.empty(GIGABYTE, dtype=torch.uint8, device="cuda")
        before = torch.cuda.memory_reserved()
        way()
        found[name] = [before, torch.cuda.memory_reserved()]
    return found


def test_an_evaluation_holds_nothing_of_the_card_when_it_is_over(on_card: Any) -> None:
    for name, (before, after) in on_card("rtx4070", evaluations).items():
        assert before >= GIGABYTE, name
        assert after == 0, name
