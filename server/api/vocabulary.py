"""Descriptions of fields in the OpenAPI document: a field's docstring, else that of its name here.

A name that several models share has the same meaning in each ("step", "name"): it is described here
once, a metric in its registry. A field of a single model, or with another meaning, is described
below the field.
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

from trainer.contract.metrics import METRICS

FIELDS: dict[str, str] = {metric.key: metric.description for metric in METRICS} | {
    # --- identity ---------------------------------------------------------------------------------
    "id": "Stable identifier.",
    "name": "Unique name.",
    "title": "Free text shown next to the name.",
    "metadata": "Free key/value pairs.",
    "run": "Id of the run it belongs to.",
    "job": "Id of the job it belongs to.",
    "attempt": "Attempt number, counted from 1 within the run; 0 is an import.",
    "index": "Index, from 0.",
    "kind": "Kind of the record.",
    "device": "Device: cpu, cuda:N or mps.",
    "data": "Items of this page.",
    # --- state ------------------------------------------------------------------------------------
    "state": "Current state.",
    "desired_state": "Requested state.",
    "reason": "Why it is in this state: a stable code.",
    "reason_message": "The reason as a sentence.",
    "advice": "Advice on what to do about the reason.",
    "condition": "Why a running run makes no steps at the moment; null if it makes steps.",
    "message": "A sentence for people.",
    "priority": "Priority from -100 to 100; higher runs go first and displace lower ones.",
    "hours": "When training is allowed; null is always, an empty list never.",
    "problems": "Why a power limit cannot be set, with the command that permits it.",
    "budget": "Budget: what a run may use before it is saved and paused; null is no limit.",
    # --- groups -----------------------------------------------------------------------------------
    "num_members": "Number of runs.",
    "depth": "Number of layers; null where the group varies no depth.",
    "variant": "Values of the grid, by dotted field of the spec.",
    "compute_multiplier": "FLOPs the baseline needs for this val bpb, over the FLOPs used here.",
    "stage": "Current stage: preparing, compiling, training, evaluating, saving, …",
    "stage_detail": "Details of the stage, for people.",
    "fraction": "Progress as a fraction of the whole, from 0 to 1.",
    "overrides": "Choices that a resume overrides.",
    "exact_resume": "Result of the resume check, which repeats a recorded loss bit for bit.",
    # --- progress ---------------------------------------------------------------------------------
    "step": "Optimizer steps done.",
    "start_step": "First step.",
    "end_step": "Step at which it ends (exclusive).",
    "tokens_seen": "Tokens trained on.",
    "peak_flops": "Peak FLOP/s that utilisation refers to.",
    "energy_joules": "Energy used so far, in joules.",
    "eta_seconds": "Time left, in seconds; null for a run that has ended.",
    "training_seconds": "Time spent in steps so far, including repeated ones, in seconds.",
    # --- times ------------------------------------------------------------------------------------
    "created_at": "Creation time, in unix seconds.",
    "started_at": "Start time, in unix seconds.",
    "ended_at": "End time, in unix seconds.",
    "last_step_at": "Time of the last step, in unix seconds.",
    "unix_seconds": "Time, in unix seconds.",
    # --- checkpoints, evaluations, samples --------------------------------------------------------
    "bytes": "Size, in bytes.",
    "pinned": "Whether it is exempt from deletion by retention.",
    "best": "Whether it has the best value of the lineage.",
    "superseded": "Whether a later attempt superseded it.",
    "identity": "Data, tokenizer and settings of the value; two identities do not compare.",
    "settings": "Settings of the evaluation.",
    "result": "Result; the keys depend on the kind.",
    "prompt": "Prompt.",
    "text": "Text.",
    # --- curves -----------------------------------------------------------------------------------
    "series": "Curves, one per key and identity.",
    "key": "Metric key.",
    "bin_steps": "Steps per point.",
    "raw_points": "Number of steps that the points summarise.",
    "segments": "Segments of the lineage by phase and attempt.",
    # --- phases and plans -------------------------------------------------------------------------
    "mode": "How the phase continues the schedule.",
    "schedule": "Schedule of the phase.",
    "joint": "Values before and after the first step of the phase.",
    "from_checkpoint": "Checkpoint the phase starts from; null is the newest.",
    "spec": "Complete spec.",
    "plan": "Plan: the quantities derived from the spec.",
    "parameters": "Number of parameters, in all and by part.",
    "warmdown_start": "Step at which the learning rate starts to decay.",
    "eta": "Estimated time, in seconds.",
    "warnings": "Warnings, as sentences.",
    "sequence_len": "Tokens per row.",
    "tokens": "Tokens.",
    "device_batch_size": "Rows per forward pass.",
    "steps": "Optimizer steps.",
    "flops": "Floating-point operations, in total.",
    "training": "Time in steps, in seconds.",
    "evaluation": "Time in evaluations, in seconds.",
    "saving": "Time for which checkpoints stall training, in seconds.",
    "planned": "Planned schedule ahead, at selected steps.",
    "discarded_steps": "Number of steps that the extend supersedes.",
    "final_lr_frac": "Final learning rate, as a fraction of the peak.",
    "rewarm_steps": "Number of steps of the ramp from the joint to the curve.",
    "peak_frac": "Learning rate after the ramp, as a fraction of the peak.",
    # --- jobs -------------------------------------------------------------------------------------
    "where": "Where it runs: inline (in the trainer), cpu or device.",
    "checkpoint": "Directory name of the checkpoint; null is the newest.",
    "max_tokens": "Maximum number of new tokens.",
    "temperature": "Sampling temperature; 0 is greedy.",
    "top_k": "Sample only from the k most likely tokens.",
    "seed": "Seed of the random number generator.",
    "versions": "Versions of the libraries.",
    "recovery": "Recovery settings to change.",
    "detail": "Description of the error.",
    # --- completions ------------------------------------------------------------------------------
    "object": "Kind of object, as OpenAI names it.",
    "created": "Creation time, in unix seconds.",
    "model": "Model as RUN, RUN@STEP or RUN@best.",
}


def describe(schemas: dict[str, Any]) -> None:
    """Add a description to every property of OpenAPI `schemas` that has none."""
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
    """Docstrings of the fields of a model and of its base models, by field name.

    They are read from the source on demand: pydantic's `use_attribute_docstrings` parses it
    whenever a class is created, at each start of each command.
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
