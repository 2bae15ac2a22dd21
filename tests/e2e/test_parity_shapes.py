"""A run with windows, three heads and a vocabulary of 1,000 goes through the daemon and back.

Made, trained and written by the plain reference in nanochat's layout; imported, extended and
exported by the daemon; the plain reference continues by itself and must arrive at the same place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.e2e.real_daemon import RealDaemon
from tests.e2e.test_life import wait_job
from tests.reference.nanochat_run import PlainRun, make_base
from tests.reference.scaling import Dials, schedule

DIALS = Dials(3, 16, 16, 160, "SSL", 1000)
FINISHED, EXTENDED = 9, 17
NEAR = 1e-4  # by norm


@dataclass
class Both:
    """The same run continued twice: by the daemon, and by the plain reference."""

    daemon: RealDaemon
    plain: PlainRun
    losses: dict[int, float]
    bpb: dict[int, float]
    exported: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("shapes")
    plain = PlainRun(make_base(folder / "nanochat", 1000), DIALS)
    plain.train(FINISHED, FINISHED)
    plain.write("w3", horizon=FINISHED)
    daemon = RealDaemon(folder)
    try:
        exported = _by_the_daemon(daemon, folder / "nanochat")
        bpb = {FINISHED: plain.bits_per_byte()}
        plain.resume()
        losses = plain.train(EXTENDED, EXTENDED)
        bpb[EXTENDED] = plain.bits_per_byte()
        yield Both(daemon, plain, losses, bpb, exported)
    finally:
        daemon.end()


def _by_the_daemon(daemon: RealDaemon, base: Path) -> Path:
    """Import, extend, export; the folder of the export."""
    client = daemon.client
    asked = {"path": str(base), "tag": "w3", "step": FINISHED, "name": "w3"}
    wait_job(daemon, client.import_run(asked).id)
    client.extend("w3", {"to_step": EXTENDED, "schedule": {"mode": "replan", "rewarm_steps": 0}})
    daemon.until("w3", lambda now: now.state == "completed" and now.step == EXTENDED)
    result = wait_job(daemon, client.export("w3", {"format": "nanochat"}).id).result
    assert result is not None
    return Path(result["path"])


def test_losses_rates_and_val_bpb(both: Both) -> None:
    keys = ["loss", "lr_multiplier", "momentum", "weight_decay"]
    answer = both.daemon.client.metrics("w3", keys=keys, max_points=100)
    found = {s.key: {p[0]: p[2] for p in s.points} for s in answer.series}
    assert found["loss"] == pytest.approx(both.losses, abs=1e-5)
    for step in both.losses:
        rates = tuple(found[key][step] for key in keys[1:])
        expected = schedule(step, EXTENDED, both.plain.hyper.weight_decay)
        assert rates == pytest.approx(expected, abs=1e-9)
    bpb = {e.step: e.value for e in both.daemon.client.evaluations("w3") if e.kind == "bpb"}
    assert bpb == pytest.approx(both.bpb, abs=1e-5)


def test_the_export_is_what_nanochat_would_have_written(both: Both) -> None:
    """Names, numbers, shapes, dtypes and the data cursor equal; values as near as the losses."""
    both.plain.write("w3", horizon=EXTENDED)
    ours, theirs = both.exported, both.plain.base
    for file in (f"model_{EXTENDED:06d}.pt", f"optim_{EXTENDED:06d}_rank0.pt"):
        found, expected = (_loaded(root, file) for root in (ours, theirs))
        if "param_groups" in expected:
            groups = [
                [(g["kind"], g["params"]) for g in s["param_groups"]] for s in (found, expected)
            ]
            assert groups[0] == groups[1]
            found, expected = found["state"], expected["state"]
        _assert_near(found, expected, file)
    name = f"base_checkpoints/w3/meta_{EXTENDED:06d}.json"
    found, expected = (json.loads((root / name).read_text()) for root in (ours, theirs))
    for key in ("dataloader_state_dict", "model_config", "total_batch_size", "step"):
        assert found[key] == expected[key], key


def _loaded(root: Path, file: str) -> Any:
    return torch.load(root / "base_checkpoints/w3" / file, weights_only=True)


def _assert_near(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            _assert_near(ours[key], value, f"{where} {key}")
    elif isinstance(theirs, Tensor):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
        assert (ours - theirs).norm() <= NEAR * theirs.norm().clamp_min(1e-3), where
    else:
        assert ours == theirs, where
