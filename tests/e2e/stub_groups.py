"""The queue and the groups of the stub: what a daemon says of a busy device and of a ladder."""

from __future__ import annotations

import time
from typing import Any

from server.scaling import fit
from server.schemas.groups import GroupDetail, GroupSummary
from server.schemas.queue import QueueView
from tests.e2e.stub_runs import StubRun, loss_at

DEPTHS, SEEDS = (4, 6, 8, 10), (42, 43)
NUM_MEMBERS = len(DEPTHS) * len(SEEDS)
PREDICTED = {
    "depth": 12, "flops": 4e16, "tokens": 900_000_000, "parameters": 91_000_000,
    "val_bpb": 0.91, "val_bpb_interval": (0.902, 0.919), "hours": 3.2, "kwh": 0.61,
    "time_source": "the FLOP/s of depth 10, measured in 2 of its runs",
}  # fmt: skip


def queue(holder: StubRun, waiting: list[StubRun], priorities: dict[str, int]) -> QueueView:
    """Equal priorities in the order of `waiting`."""
    order = sorted(waiting, key=lambda run: -priorities.get(run.id, 0))
    return QueueView.model_validate(
        {
            "places": [
                {
                    "device": "cuda:0", "name": "NVIDIA GeForce RTX 4070", "run": holder.name,
                    "job": None, "is_open": True, "closes_at": time.time() + 7200,
                    "opens_at": None, "neighbour": None,
                },
                {
                    "device": "cuda:1", "name": "NVIDIA GeForce RTX 4070", "run": None,
                    "job": None, "is_open": True, "closes_at": None, "opens_at": None,
                    "neighbour": "steam",
                },
            ],
            "waiting": [
                {
                    "position": i, "run": run.id, "name": run.name, "devices": ["cuda:0"],
                    "priority": priorities.get(run.id, 0), "reason": "waiting_for_device",
                    "reason_message": f"{holder.name} comes first on cuda:0.",
                    "until": time.time() + 3600 if i == 1 else None,
                }
                for i, run in enumerate(order, 1)
            ],
            "num_waiting": len(order) + 3, "next_change_at": time.time() + 7200,
        }
    )  # fmt: skip


def group(name: str, runs: list[StubRun], title: str | None = None) -> GroupDetail:
    """A ladder of four depths with two seeds each and a fit over it, made of `runs`."""
    places = [(depth, seed) for depth in DEPTHS for seed in SEEDS]
    members = [_member(run, depth, seed) for run, (depth, seed) in zip(runs, places, strict=True)]
    cells = [_cell(depth, [m for m in members if m["depth"] == depth]) for depth in DEPTHS]
    found = {
        "variant": {}, "form": fit.FORM, "source": fit.SOURCE, "num_points": len(members),
        "points": [(m["flops"], m["val_bpb"], m["depth"]) for m in members], "e": 0.7, "a": 0.35,
        "alpha": 0.31, "reference_flops": 1e15, "e_interval": (0.6, 0.75),
        "alpha_interval": (0.27, 0.36), "confidence": fit.CONFIDENCE, "residual_spread": 0.0011,
        "prediction": PREDICTED,
        "not_told": ["The next depth lies 2.1 times beyond the largest run in FLOPs."],
    }  # fmt: skip
    return GroupDetail.model_validate(
        {
            "id": f"grp_{name}", "name": name, "title": title, "created_at": time.time() - 9000,
            "num_members": len(members), "counts": {"completed": len(members)}, "is_over": True,
            "best_val_bpb": 0.93, "training_seconds": 8120.0, "energy_joules": 1.1e6,
            "base": {"preset": "demo"}, "depths": list(DEPTHS), "grid": {}, "repeats": len(SEEDS),
            "budget": {"minutes": 30, "tokens": None, "kwh": None}, "baseline": "group widths",
            "members": members, "cells": cells,
            "noise": {
                "spread": 0.0021, "degrees_of_freedom": 4,
                "note": "Pooled over 4 degrees of freedom: a difference of two single runs is "
                "larger than chance at 95 % from 0.0082 bits per byte on.",
            },
            "fits": [found], "notes": [],
        }
    )  # fmt: skip


def summary(name: str, runs: list[StubRun], title: str | None = None) -> GroupSummary:
    return GroupSummary.model_validate(group(name, runs, title).model_dump())


def _member(run: StubRun, depth: int, seed: int) -> dict[str, Any]:
    per_step = 1e9 * depth**2
    return {
        "run": run.id, "name": run.name, "depth": depth, "variant": {}, "seed": seed,
        "state": "completed", "reason": "finished", "reason_message": "", "device": "cuda:0",
        "step": run.step, "end_step": run.step, "fraction": 1.0, "is_finished": True,
        "loss_smooth": loss_at(run.step), "val_bpb": 1.1 - 0.02 * depth + 0.001 * (seed - 42),
        "parameters": depth * 10**6, "tokens_seen": run.step * 4096,
        "flops": run.step * per_step, "flops_per_step": per_step,
        "planned_flops": run.step * per_step, "training_seconds": 900.0, "energy_joules": None,
        "compute_multiplier": None,
    }  # fmt: skip


def _cell(depth: int, members: list[dict[str, Any]]) -> dict[str, Any]:
    mean = sum(m["val_bpb"] for m in members) / len(members)
    return {
        "depth": depth, "variant": {}, "num_members": len(members), "num_finished": len(members),
        "flops": members[0]["flops"], "val_bpb_mean": mean, "val_bpb_spread": 0.0021,
        "gain": 0.012, "gain_uncertainty": 0.004, "is_real": True, "compute_multiplier": 1.31,
        "multiplier_note": "",
    }  # fmt: skip
