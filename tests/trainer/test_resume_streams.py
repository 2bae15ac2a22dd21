"""A run on several data streams is resumed exactly, as one on a single stream is."""

from __future__ import annotations

from tests.trainer.lab import Lab

STEPS = 24


def test_killed_and_paused_it_ends_with_the_uninterrupted_weights(lab) -> None:
    spec = {"data": {"streams": 2}, "horizon": {"steps": STEPS}}
    straight: Lab = lab("straight", **spec)
    straight.run()
    assert straight.exit()["outcome"] == "completed"
    broken: Lab = lab("broken", **spec)
    broken.interrupt("pause", 5)
    broken.interrupt("kill", 13)
    broken.run()
    assert broken.exit()["outcome"] == "completed"
    assert broken.curve() == straight.curve()
    assert broken.weights_sha256(STEPS) == straight.weights_sha256(STEPS)
    assert {e["verdict"] for e in broken.events("resume_checked")} == {"verified"}
    one: Lab = lab("one", horizon={"steps": STEPS})
    one.run()
    assert one.curve() != straight.curve()
