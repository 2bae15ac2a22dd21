"""Request and response models of groups: a base spec and its variations, compared."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from server.schemas.states import State
from trainer.contract.reasons import Reason
from trainer.contract.spec import BudgetSpec, Name, Strict
from trainer.contract.spec.fields import do_not_fit

MAX_MEMBERS = 256
MAX_VALUES = 64
FieldPath = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\.[a-z_]+)*$", max_length=128)]
Depth = Annotated[int, Field(ge=1, le=128)]
_NOT_VARIED = frozenset({"name", "title", "metadata", "start", "notify", "preset", "budget"})


class GroupRequest(Strict):
    """Body of POST /v1/groups: runs are the product of depths, grid and repeats over `base`."""

    name: Name
    """Name of the group, unique among groups; its runs are named after it."""
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    """Free text shown next to the name."""
    base: Annotated[dict[str, Any], Field(max_length=64)] = {}  # noqa: RUF012
    """Run spec without a name that every member starts from."""
    depths: Annotated[list[Depth], Field(min_length=1, max_length=MAX_VALUES)] | None = None
    """Ladder: values of model.depth, ascending."""
    grid: Annotated[
        dict[FieldPath, Annotated[list[Any], Field(min_length=1, max_length=MAX_VALUES)]],
        Field(max_length=8),
    ] = {}  # noqa: RUF012
    """Values by dotted field of the spec; the first value of each is the baseline."""
    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of seeds per variant, counting up from numerics.seed."""
    budget: BudgetSpec | None = None
    """Budget of each member; a member that has used it up is saved and paused."""

    @field_validator("name")
    @classmethod
    def _no_group_id(cls, name: str) -> str:
        if name.startswith("grp_"):
            raise ValueError("a name must not begin with 'grp_', the prefix of ids")
        return name

    @model_validator(mode="after")
    def _varies_sensibly(self) -> GroupRequest:
        if "name" in self.base:
            raise do_not_fit(("base", "name"), "members are named after the group")
        if "budget" in self.base and self.budget is not None:
            raise do_not_fit(("budget",), "give the budget either here or in base, not in both")
        if self.depths is not None and sorted(set(self.depths)) != self.depths:
            raise do_not_fit(("depths",), "depths must be ascending, without repeats")
        for path, values in self.grid.items():
            if path.split(".")[0] in _NOT_VARIED:
                raise do_not_fit(("grid", path), "this field cannot be varied")
            if path == "model.depth" and self.depths is not None:
                raise do_not_fit(("grid", path), "depths already varies this field")
            if path == "numerics.seed":
                raise do_not_fit(("grid", path), "use repeats to vary the seed")
            if len({repr(value) for value in values}) < len(values):
                raise do_not_fit(
                    ("grid", path), "a value is given twice; use repeats to vary the seed"
                )
        if self.num_members > MAX_MEMBERS:
            raise do_not_fit(
                ("grid",) if self.grid else ("repeats",),
                f"this makes {self.num_members:,} runs, and a group has at most {MAX_MEMBERS}",
            )
        return self

    @property
    def num_members(self) -> int:
        count = len(self.depths or [0]) * self.repeats
        for values in self.grid.values():
            count *= len(values)
        return count


class GroupSummary(BaseModel):
    """A group in a list."""

    id: str
    name: str
    """Unique name of the group."""
    title: str | None
    created_at: float
    num_members: int
    counts: dict[str, int]
    """Number of runs by state; states without runs are left out."""
    is_over: bool
    """Whether every run has settled: none continues without a request."""
    best_val_bpb: float | None
    """Lowest validation loss of its runs, in bits per byte."""
    training_seconds: float
    energy_joules: float | None


class GroupMemberView(BaseModel):
    """A run of a group. is_finished: it completed every step of its plan; only such runs count
    towards noise, gains, multipliers and fits."""

    run: str
    """Id of the run."""
    name: str
    depth: int | None
    variant: dict[str, Any]
    seed: int
    """Seed of the run."""
    state: State
    reason: Reason
    reason_message: str
    device: str
    step: int
    end_step: int
    fraction: float
    is_finished: bool
    """Whether the run completed every step of its plan and was evaluated at the last one."""
    loss_smooth: float | None
    val_bpb: float | None
    parameters: int
    """Number of parameters."""
    tokens_seen: int
    flops: float
    """Training FLOPs of the current lineage so far."""
    flops_per_step: float
    """Training FLOPs per step: multiplied by the step, the x axis of curves."""
    planned_flops: float
    """Training FLOPs of the complete plan."""
    training_seconds: float | None
    energy_joules: float | None
    compute_multiplier: float | None


class GroupCell(BaseModel):
    """Cell of a group: members that differ only in their seed."""

    depth: int | None
    variant: dict[str, Any]
    num_members: int
    num_finished: int
    """Number of runs that have finished."""
    flops: float
    """Training FLOPs of one run."""
    val_bpb_mean: float | None
    """Mean validation loss of the finished runs, in bits per byte."""
    val_bpb_spread: float | None
    """Standard deviation between seeds, in bits per byte; null with fewer than two finished
    runs."""
    gain: float | None
    """Mean val bpb of the baseline at this depth minus this one's, in bits per byte."""
    gain_uncertainty: float | None
    """Half-width of the gain's 95 % confidence interval, in bits per byte."""
    is_real: bool | None
    """Whether the gain exceeds its uncertainty; null if the uncertainty is unknown."""
    compute_multiplier: float | None
    multiplier_note: str
    """Why there is no compute multiplier; empty if there is one."""


class NoiseFloor(BaseModel):
    """Noise: the spread of val bpb between runs that differ only in their seed."""

    spread: float | None
    """Pooled standard deviation between seeds, in bits per byte."""
    degrees_of_freedom: int
    """Number of independent differences behind the spread (degrees of freedom)."""
    note: str
    """The noise floor as a sentence."""


class LadderPrediction(BaseModel):
    """Prediction of the fit for one run of another depth on the same device."""

    depth: int
    """Number of layers."""
    flops: float
    """Training FLOPs of its plan."""
    tokens: int
    parameters: int
    """Number of parameters."""
    val_bpb: float
    """Predicted validation loss, in bits per byte."""
    val_bpb_interval: tuple[float, float]
    """Prediction interval of val bpb for one such run, in bits per byte, at the given
    confidence."""
    hours: float | None
    """Predicted training time, in hours; null if no time was measured."""
    kwh: float | None
    """Predicted energy, in kilowatt-hours; null if no power was reported."""
    time_source: str
    """Source of the predicted time."""


class LadderFit(BaseModel):
    """L(C) = e + a * (C / reference_flops)^-alpha over the finished members of a variant."""

    variant: dict[str, Any]
    form: str
    """Formula of the law."""
    source: str
    """Source of the formula, and the method of the fit."""
    num_points: int
    """Number of runs in the fit."""
    points: list[tuple[float, float, int]]
    """Finished runs: [FLOPs, val bpb, depth]."""
    e: float
    """Irreducible loss, in bits per byte."""
    a: float
    """Loss above e at reference_flops, in bits per byte."""
    alpha: float
    """Exponent of the law."""
    reference_flops: float
    """Geometric mean of the points' training compute, in FLOPs."""
    e_interval: tuple[float, float]
    """Confidence interval of e, in bits per byte."""
    alpha_interval: tuple[float, float]
    """Confidence interval of alpha."""
    confidence: float
    """Confidence level of the intervals, as a fraction from 0 to 1."""
    residual_spread: float
    """Residual standard deviation of the points, in bits per byte."""
    prediction: LadderPrediction | None
    """Prediction for a further depth; null if that depth cannot be planned."""
    not_told: list[str]
    """Limitations of the fit, one sentence each."""


class GroupDetail(GroupSummary):
    """A group with its members and their comparison."""

    base: dict[str, Any]
    """Run spec that every member starts from."""
    depths: list[int] | None
    """Depths of the ladder; null without one."""
    grid: dict[str, list[Any]]
    """Values by dotted field of the spec."""
    repeats: int
    """Number of seeds per variant."""
    budget: BudgetSpec | None
    baseline: str | None
    """Baseline of gains and multipliers; null if there is none."""
    members: list[GroupMemberView]
    """Runs of the group, in order of creation."""
    cells: list[GroupCell]
    """Cells: members that differ only in their seed, taken together."""
    noise: NoiseFloor
    """The noise floor: the spread between runs that differ only in their seed."""
    fits: list[LadderFit]
    """Scaling laws, one for each variant with finished runs at four or more depths."""
    notes: list[str]
    """Missing or excluded results, one sentence each."""
