"""Descriptions of fields in the OpenAPI document: the docstring below a field, else its name's.

A name that several models share means the same in each ("step", "loss") and is described here once.
A field of one model, or one that differs from its namesakes, is described below the field.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

FIELDS: dict[str, str] = {
    # --- identity ---------------------------------------------------------------------------------
    "id": "Stable identifier.",
    "name": "Unique name.",
    "title": "Free text shown beside the name.",
    "metadata": "Free key/value pairs.",
    "run": "Run it belongs to.",
    "job": "Job it belongs to.",
    "attempt": "Attempt number, counted from 1 within the run; 0 is an import.",
    "index": "Index, from 0.",
    "kind": "What it is a record of.",
    "device": "Device: cpu, cuda:N or mps.",
    "data": "Items of this page.",
    # --- state ------------------------------------------------------------------------------------
    "state": "What the run is doing now.",
    "desired_state": "What was asked for.",
    "reason": "Why it is in this state, as a stable code.",
    "reason_message": "The reason as a sentence.",
    "advice": "What to do about the reason.",
    "condition": "Why a running run makes no steps now; null for one that does.",
    "message": "A sentence for people.",
    "priority": "Who comes first, from -100 to 100; higher ones displace lower ones.",
    "hours": "When training is allowed; null is always, an empty list never.",
    "problems": "What keeps a power limit from being set, with the line to type.",
    "budget": "What a run may use before it is saved and paused; null is no limit.",
    # --- groups -----------------------------------------------------------------------------------
    "num_members": "Number of runs.",
    "depth": "Number of layers; null where the group varies no depth.",
    "variant": "Values of the grid, by dotted field of the spec.",
    "compute_multiplier": "FLOPs the baseline needs for this val bpb, over the FLOPs used here.",
    "stage": "What the process is doing: preparing, compiling, training, evaluating, saving, …",
    "stage_detail": "Details of the stage, for people.",
    "fraction": "Progress as a fraction of the whole, from 0 to 1.",
    "overrides": "Choices that a resume replaced.",
    "exact_resume": "Whether the resume repeated a recorded loss bit for bit.",
    # --- progress ---------------------------------------------------------------------------------
    "step": "Optimizer steps done.",
    "start_step": "First step.",
    "end_step": "Step at which it ends (exclusive).",
    "tokens_seen": "Tokens trained on.",
    "loss": "Training loss of the newest step, in nats per token.",
    "loss_smooth": "Exponentially smoothed training loss, in nats per token.",
    "lr_multiplier": "Learning rate as a multiple of its peak.",
    "momentum": "Muon's momentum.",
    "weight_decay": "Muon's weight decay as applied.",
    "tokens_per_second": "Throughput, in tokens per second.",
    "peak_flops": "Peak that utilisation refers to.",
    "power_watts": "Power draw, in watts.",
    "temperature_celsius": "Temperature, in degrees Celsius.",
    "energy_joules": "Energy used so far, in joules.",
    "eta_seconds": "Time left, in seconds; null for a run that has ended.",
    "training_seconds": "Time spent in steps so far, repeats included, in seconds.",
    "val_bpb": "Validation loss, in bits per byte.",
    # --- times ------------------------------------------------------------------------------------
    "created_at": "Creation time, in unix seconds.",
    "started_at": "Start time, in unix seconds.",
    "ended_at": "End time, in unix seconds.",
    "last_step_at": "Time of the last step, in unix seconds.",
    "unix_seconds": "Time, in unix seconds.",
    # --- checkpoints, evaluations, samples --------------------------------------------------------
    "bytes": "Size, in bytes.",
    "pinned": "Whether it is exempt from retention.",
    "best": "Whether it has the best value of the lineage.",
    "superseded": "Whether a rewind set it aside.",
    "identity": "What a value was measured under; values of two identities do not compare.",
    "settings": "Settings of the measurement.",
    "result": "Result; the keys depend on the kind.",
    "prompt": "Prompt.",
    "text": "Text.",
    # --- curves -----------------------------------------------------------------------------------
    "series": "Curves, one per key and identity.",
    "key": "Metric key.",
    "bin_steps": "Steps per point.",
    "raw_points": "Number of steps that the points summarise.",
    "segments": "Stretches of steps by phase and attempt.",
    # --- phases and plans -------------------------------------------------------------------------
    "mode": "How the phase continues the schedule.",
    "schedule": "Schedule of the phase.",
    "joint": "Values on both sides of the first step of the phase.",
    "from_checkpoint": "Checkpoint the phase starts from; null is the newest.",
    "spec": "Complete spec.",
    "plan": "Arithmetic that follows from the spec.",
    "parameters": "Number of parameters, in all and by part.",
    "warmdown_start": "Step at which the learning rate starts to decay.",
    "eta": "Estimated time, in seconds.",
    "warnings": "Sentences about what deserves attention.",
    "sequence_len": "Tokens per row.",
    "tokens": "Tokens.",
    "device_batch_size": "Rows per forward pass.",
    "steps": "Optimizer steps.",
    "flops": "Floating-point operations in all.",
    "training": "Time in steps, in seconds.",
    "evaluation": "Time in evaluations, in seconds.",
    "saving": "Time for which checkpoints stall training, in seconds.",
    "planned": "Schedule ahead, at some steps.",
    "discarded_steps": "Steps of the lineage that the extend sets aside.",
    "final_lr_frac": "Learning rate at the end, as a fraction of the peak.",
    "rewarm_steps": "Steps of the ramp from the joint to the curve.",
    "peak_frac": "Learning rate after the ramp, as a fraction of the peak.",
    # --- jobs -------------------------------------------------------------------------------------
    "where": "Where it runs: inline in the trainer, on the cpu, or on the device.",
    "checkpoint": "Directory name of the checkpoint; null is the newest.",
    "max_tokens": "Maximum number of new tokens.",
    "temperature": "Sampling temperature; 0 is greedy.",
    "top_k": "Sample among the k most likely tokens only.",
    "seed": "Seed of the random choices.",
    "versions": "Versions of the libraries.",
    "recovery": "Recovery settings to change.",
    "detail": "What is wrong, for people.",
    # --- completions ------------------------------------------------------------------------------
    "object": "Kind of object, as OpenAI names it.",
    "created": "Creation time, in unix seconds.",
    "model": "Model as RUN, RUN@STEP or RUN@best.",
}


def describe(schemas: dict[str, Any]) -> None:
    """Give every property of OpenAPI `schemas` that has no description its own."""
    models = {model.__name__: model for model in _models(BaseModel)}
    for name, schema in schemas.items():
        model = models.get(name.partition("_")[0])  # Page_RunSummary_ is Page[RunSummary]
        own = in_place(model) if model else {}
        for field, found in schema.get("properties", {}).items():
            words = own.get(field) or FIELDS.get(field)
            if words and not found.get("description"):
                found["description"] = words
    _docstrings.cache_clear()


def in_place(model: type[BaseModel]) -> dict[str, str]:
    """Docstrings below the fields of a model and of the models it extends, by field.

    Read from the source when they are asked for: pydantic's `use_attribute_docstrings` parses it
    whenever a class is made, at each start of each command.
    """
    found: dict[str, str] = {}
    bases = [
        base for base in model.__mro__ if issubclass(base, BaseModel) and base is not BaseModel
    ]
    for base in reversed(bases):
        found |= _docstrings(base.__module__).get(base.__name__, {})
    return found


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        if model.__module__.partition(".")[0] in ("server", "trainer"):
            yield model
        yield from _models(model)


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    try:
        source = inspect.getsource(sys.modules[module])
    except OSError:  # an installation without sources
        return {}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_below_fields(node.body)) for node in classes}


def _below_fields(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, words in pairwise(body):
        match field, words:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())
