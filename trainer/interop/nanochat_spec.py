"""Derives the run spec from a nanochat checkpoint.

Command-line flags give the schedule and the unscaled rates; the optimizer file takes precedence for
base rates, betas and AdamW's decays, because nanochat's own resume takes them from there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.contract.plan import RATE_OF_GROUP, Hyperparameters, make_plan
from trainer.contract.recipe import RECIPES, RecipeName, rules_of
from trainer.contract.shape import ModelShape, shape_of
from trainer.contract.spec import ModelSpec, OptimizerSpec, RunSpec, resolve
from trainer.interop.errors import InteropError
from trainer.interop.nanochat import NanochatRun
from trainer.interop.nanochat_meta import NanochatMeta, UserConfig
from trainer.model.parameters import AdamGroup, adam_groups

RATE_TOLERANCE = 1e-9


def spec_from_run(
    run: NanochatRun, *, name: str, corpus: Path | str | None, tokenizer: Path | str
) -> dict[str, Any]:
    """A complete run-spec body that plans what nanochat planned.

    corpus: the folder of parquet files or packed shards; None for the built-in text.
    tokenizer: the folder of the imported tokenizer. Raises InteropError if nanochat's flags
    cannot give the shape in meta.
    """
    meta = run.meta
    user = meta.user_config
    recipe = _model_recipe(run)
    body: dict[str, Any] = {
        "name": name,
        "model": _model(run, recipe),
        "data": _data(run, corpus, tokenizer),
        "horizon": _horizon(user),
        "batch": {
            "tokens": meta.total_batch_size or "auto",
            "device_batch_size": meta.device_batch_size or "auto",
        },
        "optimizer": {
            "matrix_lr": user.matrix_lr,
            "embedding_lr": user.embedding_lr,
            "unembedding_lr": user.unembedding_lr,
            "scalar_lr": user.scalar_lr,
            "weight_decay": user.weight_decay,
        },
        "schedule": {
            "warmup_steps": user.warmup_steps,
            "warmdown_ratio": user.warmdown_ratio,
            "warmdown_shape": "linear",
            "final_lr_frac": user.final_lr_frac,
        },
        "numerics": {"precision": run.precision},
        "evaluate": _evaluate(run),
        "checkpoint": {"every_steps": _cadence(user.save_every)},
    }
    body["optimizer"] |= _optimizer_recipe(run, body)
    groups = _stated_groups(run, _planned(run, body))
    if groups:
        body["optimizer"]["groups"] = groups
    return body


# --- model ---------------------------------------------------------------------------------------


def _model_recipe(run: NanochatRun) -> RecipeName:
    if not run.traits.smear:
        return "2026-09"
    return "2026-07" if run.muon == "2026-07" else "2026-03"


def _model(run: NanochatRun, recipe: RecipeName) -> dict[str, Any]:
    """Model settings: the flags, and the traits that differ from the recipe's."""
    shape, user = run.shape, run.meta.user_config
    model: dict[str, Any] = {
        "recipe": recipe,
        "depth": shape.n_layer,
        "aspect_ratio": user.aspect_ratio or _aspect_ratio(shape),
        "head_dim": shape.head_dim,
        "n_kv_head": None if shape.n_kv_head == shape.n_head else shape.n_kv_head,
        "sequence_len": shape.sequence_len,
        "window_pattern": shape.window_pattern,
        "vocab_size": shape.vocab_size,
    }
    named = RECIPES[recipe].architecture
    if shape.traits.tables != named.tables:
        model["tables"] = shape.traits.tables
    if shape.traits.short_window != named.short_window:
        model["short_window"] = shape.short_window
    planned = shape_of(_validated(run, model))
    if _sizes(planned) != _sizes(shape):
        raise InteropError(
            run.found.meta(run.step),
            f"depth {shape.n_layer} x aspect_ratio {model['aspect_ratio']} does not give "
            f"n_embd {shape.n_embd} with {shape.n_head} heads",
        )
    return model


def _validated(run: NanochatRun, model: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(model)
    except ValidationError as error:
        raise _no_run(run, error) from None


def _sizes(shape: ModelShape) -> tuple[Any, ...]:
    """Everything that determines the forward pass and the shapes of the weights."""
    return (
        shape.n_layer, shape.n_embd, shape.n_head, shape.n_kv_head, shape.head_dim,
        shape.sequence_len, shape.vocab_size, shape.windows, shape.traits.smear,
        shape.traits.tables,
    )  # fmt: skip


def _aspect_ratio(shape: ModelShape) -> int:
    """An aspect_ratio that gives the width, if the stored flags have none (chat stage weights)."""
    return max(1, shape.n_embd // shape.n_layer)


# --- data ----------------------------------------------------------------------------------------


def is_packed(meta: NanochatMeta) -> bool:
    """True if the run reads packed shards."""
    return meta.dataloader_row is not None or (
        meta.dataloader_state_dict is None and meta.model_config_.short_seq_len is not None
    )


def _data(run: NanochatRun, corpus: Path | str | None, tokenizer: Path | str) -> dict[str, Any]:
    own: dict[str, Any] = {"tokenizer": {"path": str(tokenizer)}}
    if corpus is None:
        return {"source": "builtin", **own}
    if is_packed(run.meta):
        shards = run.meta.user_config.num_shards
        limit = {"num_shards": shards} if shards > 0 else {}
        return {"source": "nanochat_packed", "path": str(corpus), **limit, **own}
    streams = {"streams": run.world} if run.world > 1 else {}
    return {"source": "parquet", "path": str(corpus), "packing": "best_fit", **streams, **own}


# --- optimizer -----------------------------------------------------------------------------------


def _optimizer_recipe(run: NanochatRun, body: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's recipe if it is not the model's: the one whose scaling rules give the base
    rates of the optimizer file."""
    own: dict[str, Any] = {}
    named: RecipeName = body["model"]["recipe"]
    for candidate in (named, *(name for name in ("2026-07", "2026-09") if name != named)):
        rates = _planned(run, body | {"optimizer": {**body["optimizer"], "recipe": candidate}})
        if _fits_width(run, rates):
            own = {"recipe": candidate} if candidate != named else {}
            break
    rules = rules_of(ModelSpec.model_validate(body["model"]), OptimizerSpec.model_validate(own))
    return own if rules.muon == run.muon else {**own, "muon": run.muon}


def _fits_width(run: NanochatRun, planned: Hyperparameters) -> bool:
    """True if head and token embedding have the planned rates, or the file states none."""
    if run.optimizer is None:
        return True
    stated = {key: run.optimizer.groups[key].lr for key in ("lm_head", "wte")}
    return all(
        lr is None or _near(lr, getattr(planned, RATE_OF_GROUP[key])) for key, lr in stated.items()
    )


def _planned(run: NanochatRun, body: dict[str, Any]) -> Hyperparameters:
    return make_plan(_resolved(run, body)).hyperparameters


def _resolved(run: NanochatRun, body: dict[str, Any]) -> RunSpec:
    try:
        return resolve(body)
    except ValidationError as error:
        raise _no_run(run, error) from None


def _no_run(run: NanochatRun, error: ValidationError) -> InteropError:
    """The error for a meta file whose numbers make no valid run."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "spec"
    return InteropError(run.found.meta(run.step), f"gives no run: {where}: {first['msg']}")


def _stated_groups(run: NanochatRun, planned: Hyperparameters) -> dict[str, Any]:
    """Groups of the optimizer file whose settings differ from the planned ones."""
    if run.optimizer is None:
        return {}
    found: dict[str, Any] = {}
    for group in adam_groups(run.shape):
        own = _stated(run, group, planned)
        if own is not None:
            found[group.key] = own
    matrix_lr = run.optimizer.matrix_lr
    if matrix_lr is not None and not _near(matrix_lr, planned.matrix_lr):
        found["matrix_lr"] = matrix_lr
    return found


def _stated(
    run: NanochatRun, group: AdamGroup, planned: Hyperparameters
) -> dict[str, float] | None:
    assert run.optimizer is not None
    stated = run.optimizer.groups[group.key]
    lr = group.lr(planned) if stated.lr is None else stated.lr
    betas = stated.betas or group.betas
    decay = group.weight_decay if stated.weight_decay is None else stated.weight_decay
    is_planned = _near(lr, group.lr(planned)) and betas == group.betas
    if is_planned and decay == group.weight_decay:
        return None
    return {"lr": lr, "beta1": betas[0], "beta2": betas[1], "weight_decay": decay}


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=RATE_TOLERANCE)


# --- the rest ------------------------------------------------------------------------------------


def _horizon(user: UserConfig) -> dict[str, Any]:
    """nanochat's order of precedence: steps, FLOPs, data:param ratio."""
    if user.num_iterations > 0:
        return {"steps": user.num_iterations}
    if user.target_flops > 0:
        return {"flops": user.target_flops}
    ratio = user.target_param_data_ratio
    return {"data_param_ratio": ratio if ratio > 0 else UserConfig().target_param_data_ratio}


def _evaluate(run: NanochatRun) -> dict[str, Any]:
    user = run.meta.user_config
    most = user.core_metric_max_per_task
    return {
        "bpb_every": _cadence(user.eval_every),
        "eval_tokens": _eval_tokens(run),
        "core_every": _cadence(user.core_metric_every),
        "core_max_per_task": most if most > 0 else None,
        "sample_every": _cadence(user.sample_every),
    }


def _eval_tokens(run: NanochatRun) -> int:
    """Number of tokens that nanochat evaluated: of packed rows whole batches of all its GPUs; the
    evaluation itself accounts for data streams of v1."""
    meta, asked = run.meta, run.meta.user_config.eval_tokens
    each = (meta.device_batch_size or 1) * meta.model_config_.sequence_len * run.world
    if not is_packed(meta) or run.world == 1:
        return asked
    return max(1, asked // each) * each


def _cadence(every: int) -> int | None:
    return every if every > 0 else None
