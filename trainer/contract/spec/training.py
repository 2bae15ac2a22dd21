"""Training part of the spec: horizon, batch, schedule and numerics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainer.contract.lanes import MAX_LANES, power_of_two
from trainer.contract.spec.fields import MAX_STEPS, Frac, Steps, Strict, Tokens

# How a horizon is given, and its unit as forms name it.
HORIZON_UNITS = {
    "steps": "steps",
    "tokens": "tokens",
    "flops": "FLOP",
    "data_param_ratio": "tokens per parameter",
}


class HorizonSpec(Strict):
    """Training length: exactly one of steps, tokens, flops, data_param_ratio."""

    steps: Steps | None = None
    """Training length in optimizer steps."""
    tokens: Tokens | None = None
    """Training length in tokens, rounded down to whole steps."""
    flops: Annotated[float, Field(ge=1, le=1e30)] | None = None
    """Training length in floating-point operations."""
    data_param_ratio: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """Training length in tokens per scaling parameter (matrices and lm_head)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> HorizonSpec:
        given = [k for k in HORIZON_UNITS if getattr(self, k)]
        if len(given) != 1:
            said = ", ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(HORIZON_UNITS)} (given: {said})")
        return self


class BatchSpec(Strict):
    """Tokens per optimizer step, and rows per forward pass on the device."""

    tokens: Tokens | Literal["auto"] = "auto"
    """Tokens per optimizer step; auto follows the scaling rule for batch sizes."""
    device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = "auto"
    """Rows per forward pass; auto measures which fits and runs fastest."""


class ScheduleSpec(Strict):
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 40
    """Steps over which the learning rate rises linearly to its peak."""
    warmdown_ratio: Frac = 0.65
    """Share of the horizon over which the learning rate decays at the end."""
    warmdown_shape: Literal["linear", "cosine"] = "linear"
    """Shape of that decay."""
    final_lr_frac: Frac = 0.05
    """Learning rate at the end, as a fraction of the peak."""


class NumericsSpec(Strict):
    """`deterministic: None` means true on the CPU and false on a GPU.

    precision: fp8 is bf16 with the matrix products of the trunk in 8 bits, on GPUs that have it.

    kernels: "triton" autotunes traind's own kernels against the compiler's and uses the faster.

    lanes: groups of micro-batches whose gradients are summed separately and then in a fixed tree,
    so that 1, 2, 4 … devices compute the same bits, up to one device per lane.

    peak: what MFU refers to; "measured" times a matrix product even on a GPU in the table.
    """

    precision: Literal["auto", "bf16", "fp32", "fp16", "fp8"] = "auto"
    """Compute dtype; auto is bf16 on GPUs that have it and fp32 elsewhere."""
    deterministic: bool | None = None
    """Use deterministic kernels only; null is true on the CPU and false on a GPU."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of the initial weights and of every shuffle."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of the trainer; null lets torch choose."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model with torch.compile; auto decides by device and length of the run."""
    kernels: Literal["compiled", "triton"] = "compiled"
    """triton autotunes traind's own kernels against the compiler's at the first start."""
    lanes: Annotated[int, Field(ge=1, le=MAX_LANES)] | None = None
    """Groups of micro-batches summed in a fixed tree, a power of two; null is one per device."""
    peak: Literal["auto", "measured"] = "auto"
    """FLOP/s that MFU refers to: the table's value, or always measured on this machine."""

    @field_validator("lanes")
    @classmethod
    def _lanes_make_a_tree(cls, lanes: int | None) -> int | None:
        if lanes is not None and lanes != power_of_two(lanes):
            near = power_of_two(lanes)
            raise ValueError(f"must be a power of two, such as {near // 2} or {near}")
        return lanes
