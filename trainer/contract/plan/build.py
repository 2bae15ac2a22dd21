"""Builds the complete plan of a spec."""

from __future__ import annotations

from trainer.contract import recipe
from trainer.contract.plan.answer import Parameters, Plan, PlannedShape, RecipeChoice
from trainer.contract.plan.batch import plan_batch
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.disk import estimate_disk, shards_for
from trainer.contract.plan.eta import crash_loss, estimate_eta, throughput
from trainer.contract.plan.exchange import plan_exchange
from trainer.contract.plan.horizon import plan_horizon
from trainer.contract.plan.memory import estimate_memory
from trainer.contract.plan.scaling import scaled_hyperparameters
from trainer.contract.plan.warnings import warnings_about
from trainer.contract.schedule import initial_schedule
from trainer.contract.shape import ModelShape, count_parameters, shape_of
from trainer.contract.spec import RunSpec


def make_plan(spec: RunSpec, context: PlanContext | None = None) -> Plan:
    """The plan of `spec`. Raises CannotPlan if its numbers contradict each other."""
    context = context or PlanContext()
    spec = spec.on_gpus(context.gpus)
    shape = shape_of(spec.model)
    counts = count_parameters(shape)
    batch = plan_batch(spec, shape, context)
    horizon = plan_horizon(spec, shape, batch.tokens)
    schedule = initial_schedule(
        horizon.steps,
        spec.schedule.warmup_steps,
        spec.schedule.warmdown_ratio,
        spec.schedule.warmdown_shape,
        spec.schedule.final_lr_frac,
    )
    memory = estimate_memory(shape, batch, spec, context)
    eta = estimate_eta(spec, shape, batch, 0, horizon.steps, context)
    shards = shards_for(spec, horizon.tokens)
    disk = estimate_disk(spec, shape, horizon, shards, context)
    plan = Plan(
        shape=describe(shape),
        parameters=Parameters(**vars(counts), total=counts.total, scaling=counts.scaling),
        batch=batch,
        hyperparameters=scaled_hyperparameters(spec, shape, batch.tokens),
        horizon=horizon,
        schedule=schedule,
        warmdown_start=schedule.warmdown_start,
        memory=memory,
        disk=disk,
        eta=eta,
        crash_loses_at_most_seconds=crash_loss(spec, eta, horizon.steps),
        max_shards=shards,
        warnings=[],
        recipe=RecipeChoice(
            model=spec.model.recipe,
            optimizer=spec.optimizer.recipe or spec.model.recipe,
            changes=recipe.changes(spec.model, spec.optimizer),
        ),
        num_devices=spec.num_ranks,
        exchange=plan_exchange(spec, shape, batch, throughput(shape, context)[0], context),
    )
    return plan.model_copy(update={"warnings": warnings_about(spec, plan, context)})


def describe(shape: ModelShape) -> PlannedShape:
    """The model's dimensions for the plan."""
    return PlannedShape(
        n_layer=shape.n_layer,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_kv_head=shape.n_kv_head,
        head_dim=shape.head_dim,
        sequence_len=shape.sequence_len,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.padded_vocab_size,
        windows=list(shape.windows),
    )
