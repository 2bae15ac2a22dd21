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
    """POST /v1/groups: runs are the product of depths, grid and repeats, laid over `base`."""

    name: Name
    """Name of the group, unique among groups; its runs are named after it."""
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    """Free text shown beside the name."""
    base: Annotated[dict[str, Any], Field(max_length=64)] = {}  # noqa: RUF012
    """Run spec without a name that every member starts from."""
    depths: Annotated[list[Depth], Field(min_length=1, max_length=MAX_VALUES)] | None = None
    """Ladder: values of model.depth, ascending."""
    grid: Annotated[
        dict[FieldPath, Annotated[list[Any], Field(min_length=1, max_length=MAX_VALUES)]],
        Field(max_length=8),
    ] = {}  # noqa: RUF012
    """Values by dotted field of the spec; the first of each makes the baseline."""
    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of seeds of each, counted up from numerics.seed."""
    budget: BudgetSpec | None = None
    """Budget of each member: when it is spent, the member is saved and paused."""

    @field_validator("name")
    @classmethod
    def _no_group_id(cls, name: str) -> str:
        if name.startswith("grp_"):
            raise ValueError("a name must not begin with 'grp_', which is how ids begin")
        return name

    @model_validator(mode="after")
    def _varies_sensibly(self) -> GroupRequest:
        if "name" in self.base:
            raise do_not_fit(("base", "name"), "members are named after the group")
        if "budget" in self.base and self.budget is not None:
            raise do_not_fit(("budget",), "give the budget once: here or in base")
        if self.depths is not None and sorted(set(self.depths)) != self.depths:
            raise do_not_fit(("depths",), "depths must be ascending, each of them once")
        for path, values in self.grid.items():
            if path.split(".")[0] in _NOT_VARIED:
                raise do_not_fit(("grid", path), "this field describes a run and is not varied")
            if path == "model.depth" and self.depths is not None:
                raise do_not_fit(("grid", path), "depths varies it already")
            if path == "numerics.seed":
                raise do_not_fit(("grid", path), "seeds are varied by repeats")
            if len({repr(value) for value in values}) < len(values):
                raise do_not_fit(("grid", path), "the same value twice; repeats varies the seed")
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
    """A group in a list. counts: members by state. is_over: none can train on by itself."""

    id: str
    name: str
    title: str | None
    created_at: float
    num_members: int
    counts: dict[str, int]
    is_over: bool
    best_val_bpb: float | None
    training_seconds: float
    energy_joules: float | None


class GroupMemberView(BaseModel):
    """A run of a group. is_finished: it did every step of its plan; only such runs enter noise,
    gains, multipliers and fits."""

    run: str
    name: str
    depth: int | None
    variant: dict[str, Any]
    seed: int
    state: State
    reason: Reason
    reason_message: str
    device: str
    step: int
    end_step: int
    fraction: float
    is_finished: bool
    loss_smooth: float | None
    val_bpb: float | None
    parameters: int
    tokens_seen: int
    flops: float
    flops_per_step: float
    planned_flops: float
    training_seconds: float | None
    energy_joules: float | None
    compute_multiplier: float | None


class GroupCell(BaseModel):
    """Members that differ by their seed alone."""

    depth: int | None
    variant: dict[str, Any]
    num_members: int
    num_finished: int
    flops: float
    val_bpb_mean: float | None
    val_bpb_spread: float | None
    gain: float | None
    gain_uncertainty: float | None
    is_real: bool | None
    compute_multiplier: float | None
    multiplier_note: str


class NoiseFloor(BaseModel):
    """How far apart runs lie that differ by their seed alone."""

    spread: float | None
    degrees_of_freedom: int
    note: str


class LadderPrediction(BaseModel):
    """What the fit expects of one run of another depth on the same device."""

    depth: int
    flops: float
    tokens: int
    parameters: int
    val_bpb: float
    val_bpb_interval: tuple[float, float]
    hours: float | None
    kwh: float | None
    time_source: str


class LadderFit(BaseModel):
    """L(C) = e + a * (C / reference_flops)^-alpha over the finished members of a variant."""

    variant: dict[str, Any]
    form: str
    source: str
    num_points: int
    points: list[tuple[float, float, int]]
    e: float
    a: float
    alpha: float
    reference_flops: float
    e_interval: tuple[float, float]
    alpha_interval: tuple[float, float]
    confidence: float
    residual_spread: float
    prediction: LadderPrediction | None
    not_told: list[str]


class GroupDetail(GroupSummary):
    """A group with its members, and what comparing them says."""

    base: dict[str, Any]
    depths: list[int] | None
    grid: dict[str, list[Any]]
    repeats: int
    budget: BudgetSpec | None
    baseline: str | None
    members: list[GroupMemberView]
    cells: list[GroupCell]
    noise: NoiseFloor
    fits: list[LadderFit]
    notes: list[str]
