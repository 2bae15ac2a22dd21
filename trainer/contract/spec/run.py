"""The complete spec of a run, and how a request body becomes one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from trainer.contract.lanes import lanes_for, power_of_two
from trainer.contract.spec.data import DataSpec
from trainer.contract.spec.evaluation import EvaluateSpec
from trainer.contract.spec.fields import Name, Strict, do_not_fit
from trainer.contract.spec.model import ModelSpec
from trainer.contract.spec.optimizer import OptimizerSpec
from trainer.contract.spec.place import PlaceSpec, limit_seconds
from trainer.contract.spec.presets import PRESETS
from trainer.contract.spec.safety import CheckpointSpec, RecoverySpec
from trainer.contract.spec.scheduling import BudgetSpec, Hours, Priority
from trainer.contract.spec.training import BatchSpec, HorizonSpec, NumericsSpec, ScheduleSpec

FP8_TILE = 16
MAX_RANKS = 64
Gpus = Annotated[int, Field(ge=1, le=MAX_RANKS)] | Literal["all"]
_HOURS_OF_A_PLACE = "hours are for this machine's devices: a cluster's scheduler has its own"
RankDevice = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda:\d{1,3})$")]
Url = Annotated[str, StringConstraints(max_length=2048, pattern=r"^[a-z][a-z0-9+.-]*://\S+$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]

# These are choices, not settings to be merged: naming one key replaces the whole.
_REPLACED_WHOLE = {"horizon", "metadata", "tokenizer"}


class RunSpec(Strict):
    """A complete run spec. `resolve` builds one from a request body."""

    name: Name
    """Unique name; works wherever an id does."""
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    """Free text shown beside the name."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}  # noqa: RUF012
    """Up to 16 free key/value pairs."""
    preset: str = "demo"
    """Set of defaults that the rest of the spec overrides."""
    start: bool = True
    """Whether the run is queued immediately; false leaves it in state created."""
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")] = "auto"
    """Device to train on; auto is the first free GPU, or the CPU of a machine without one."""
    gpus: Gpus = 1
    """Number of this machine's GPUs that train together, from cuda:0 on; a power of two. `all` is
    as many as there are when an attempt starts, rounded down to one that shares the lanes. With a
    place: the GPUs of all its nodes together."""
    devices: Annotated[list[RankDevice], Field(min_length=2, max_length=MAX_RANKS)] | None = None
    """Devices that train together, one process on each, instead of `gpus`; null is by `gpus`."""
    place: PlaceSpec | None = None
    """Cluster that the run trains on; null is the daemon's own machine."""
    model: ModelSpec = ModelSpec()
    """Architecture."""
    data: DataSpec = DataSpec()
    """Corpus, tokenizer and packing."""
    horizon: HorizonSpec
    """Training length."""
    batch: BatchSpec = BatchSpec()
    """Batch size."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Learning rates and weight decay."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning rate schedule."""
    numerics: NumericsSpec = NumericsSpec()
    """Precision, determinism and compilation."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """Evaluations during training."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Checkpoint cadence and retention."""
    recovery: RecoverySpec = RecoverySpec()
    """What happens after crashes, reboots and non-finite losses."""
    priority: Priority = 0
    """Priority in the queue: a run yields to one of strictly higher priority and resumes by
    itself."""
    preemptible: bool = True
    """Whether the run yields to higher priorities and for other programs on its device."""
    hours: Hours | None = None
    """When the run may train: it saves and leaves before they end, and resumes by itself;
    null is always."""
    budget: BudgetSpec | None = None
    """Budget of the run: when it is spent, the run is saved and paused; null is no
    limit."""
    notify: Annotated[list[Url], Field(max_length=16)] = []  # noqa: RUF012
    """Webhook or apprise URLs that receive the run's notices."""

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"unknown preset; known are {', '.join(PRESETS)}")
        return preset

    @model_validator(mode="after")
    def _batch_divides(self) -> RunSpec:
        tokens, rows = self.batch.tokens, self.batch.device_batch_size
        length = self.model.sequence_len
        if not isinstance(tokens, int):
            return self
        if tokens % length:
            raise do_not_fit(
                ("batch", "tokens"),
                f"batch.tokens {tokens:,} is not a multiple of model.sequence_len {length:,}",
            )
        if isinstance(rows, int) and tokens % (rows * length):
            near = max(1, tokens // (rows * length)) * rows * length
            raise do_not_fit(
                ("batch", "tokens"),
                f"batch.tokens {tokens:,} is not divisible by device_batch_size x sequence_len "
                f"= {rows} x {length:,} = {rows * length:,}; {near:,} would be",
            )
        return self

    @model_validator(mode="after")
    def _streams_share_a_step(self) -> RunSpec:
        tokens, streams = self.batch.tokens, self.data.streams
        if isinstance(tokens, int) and tokens // self.model.sequence_len % streams:
            raise do_not_fit(
                ("data", "streams"),
                f"a step of {tokens // self.model.sequence_len:,} rows (batch.tokens {tokens:,} / "
                f"sequence_len {self.model.sequence_len:,}) cannot be shared equally by "
                f"{streams} streams",
            )
        return self

    @property
    def rank_devices(self) -> list[str]:
        """The device of each process of a run on several; empty for a run on one device, and for
        one on all GPUs, which are only known when it starts."""
        nodes = self.place.nodes if self.place else 1
        return rank_devices({"devices": self.devices, "gpus": self.gpus, "place": {"nodes": nodes}})

    @property
    def num_ranks(self) -> int:
        return max(1, len(self.rank_devices))

    @property
    def first_device(self) -> str:
        """The device of rank 0 on a cluster node, whose devices are unknown on this machine."""
        alone = "cpu" if self.device == "cpu" else "cuda:0"
        return self.rank_devices[0] if self.rank_devices else alone

    def on_gpus(self, count: int | None) -> RunSpec:
        """The spec with `gpus: all` replaced by `count`; unchanged if it has a number."""
        if self.gpus != "all" or count is None:
            return self
        return self.model_copy(update={"gpus": count})

    @property
    def lanes(self) -> int:
        """Lanes of a step: as requested, otherwise one per device."""
        return lanes_for(self.num_ranks, self.numerics.lanes)

    @model_validator(mode="after")
    def _devices_are_a_gang(self) -> RunSpec:
        count = self.num_ranks
        if self.devices is not None and self.gpus != 1:
            raise do_not_fit(("gpus",), "give gpus or devices, not both")
        if (count > 1 or self.gpus == "all") and self.device != "auto":
            field = "devices" if self.devices is not None else "gpus"
            raise do_not_fit(
                ("device",), f"device is for a run on one device: {field} sets those of this one"
            )
        if count != power_of_two(count):
            near = power_of_two(count)
            raise do_not_fit(
                ("gpus",) if self.devices is None else ("devices",),
                f"{count} devices cannot train together: their gradients are summed in a binary "
                f"tree, so that the number must be a power of two, such as {near // 2} or {near}",
            )
        cards = [name for name in self.devices or () if name != "cpu"]
        if cards and (len(set(cards)) < count):
            raise do_not_fit(("devices",), "devices must be different GPUs, or each of them cpu")
        return self

    @model_validator(mode="after")
    def _place_fits(self) -> RunSpec:
        place = self.place
        if place is None:
            return self
        if self.gpus == "all":
            raise do_not_fit(("gpus",), "a cluster has no `all`: give the number of GPUs")
        if self.num_ranks % place.nodes:
            raise do_not_fit(
                ("place", "nodes"),
                f"{self.num_ranks} devices cannot be shared equally by {place.nodes} nodes: "
                f"give gpus, the number on all nodes together, as a multiple of {place.nodes}",
            )
        if self.devices is not None and set(self.devices) != {"cpu"}:
            raise do_not_fit(
                ("devices",), "Slurm chooses the devices of its nodes: give gpus, their number"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise do_not_fit(
                ("device",), "Slurm chooses the device of its node: leave device out, or give cpu"
            )
        if self.hours:
            raise do_not_fit(("hours",), _HOURS_OF_A_PLACE)
        if place.time_limit and limit_seconds(place.time_limit) < 2 * place.save_seconds:
            raise do_not_fit(
                ("place", "time_limit"),
                f"time_limit {place.time_limit} leaves too little beside save_seconds "
                f"{place.save_seconds}: give at least twice as much",
            )
        return self

    @model_validator(mode="after")
    def _lanes_share_a_step(self) -> RunSpec:
        tokens, lanes, count = self.batch.tokens, self.lanes, self.num_ranks
        length, asked = self.model.sequence_len, self.batch.device_batch_size
        rows = asked if isinstance(asked, int) else 1
        if lanes % count:
            raise do_not_fit(
                ("numerics", "lanes"),
                f"{lanes} lanes cannot be shared by {count} devices: give at least {count}",
            )
        micro_batches = tokens // (rows * length) if isinstance(tokens, int) else lanes
        if micro_batches % lanes:
            field = ("batch", "device_batch_size") if count > 1 else ("numerics", "lanes")
            raise do_not_fit(field, _shared_badly(micro_batches, rows, lanes, count))
        return self

    @model_validator(mode="after")
    def _tiles_fit(self) -> RunSpec:
        """fp8 matrix products use tiles; every size is a multiple of the tile if these two are."""
        for name in ("head_dim", "sequence_len"):
            if self.numerics.precision == "fp8" and getattr(self.model, name) % FP8_TILE:
                raise do_not_fit(
                    ("numerics", "precision"),
                    f"fp8 multiplies in tiles of {FP8_TILE}: model.{name} "
                    f"{getattr(self.model, name):,} would have to be a multiple of it",
                )
        return self

    @model_validator(mode="after")
    def _kernels_fit(self) -> RunSpec:
        if self.numerics.kernels == "triton" and self.numerics.precision not in ("auto", "bf16"):
            raise do_not_fit(
                ("numerics", "kernels"),
                f"the kernels are made for bf16: with precision {self.numerics.precision} there "
                "are none to race",
            )
        return self


def rank_devices(spec: Mapping[str, Any], all_gpus: Sequence[str] = ()) -> list[str]:
    """The device of each process, from a stored spec, which may be older than these fields.

    all_gpus: the devices that `gpus: all` means.
    """
    gpus = spec.get("gpus") or 1
    if spec.get("devices"):
        named = list(spec["devices"])
    elif gpus == "all":
        named = list(all_gpus)
    else:
        on_each = max(1, int(gpus) // int((spec.get("place") or {}).get("nodes", 1)))
        named = [f"cuda:{index % on_each}" for index in range(int(gpus))]
    return named if len(named) > 1 else []


def _shared_badly(micro_batches: int, rows: int, lanes: int, count: int) -> str:
    """The error of micro-batches that do not divide among lanes, with counts that would."""
    among = f"{lanes} lanes" if lanes != count else f"{count} devices"
    fitting = [n for n in (1, 2, 4, 8, 16, 32, 64) if micro_batches % n == 0]
    words = ", ".join(map(str, fitting))
    do = "do" if len(fitting) > 1 else "does"
    return (
        f"{micro_batches:,} micro-batches of {rows} rows a step do not divide among {among}; "
        f"{words} {do}: lower batch.device_batch_size or raise batch.tokens"
    )


def resolve(body: dict[str, Any]) -> RunSpec:
    """The complete spec for a request body.

    Raises pydantic.ValidationError, whose locations are paths into the body.
    """
    preset = body.get("preset", "demo")
    base = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    if base.get("horizon") is None:
        base = {**base, "horizon": {"steps": 200}}
    return RunSpec.model_validate(_overlay(base, body))


def _overlay(base: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in body.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and key not in _REPLACED_WHOLE:
            if key == "data" and value.get("source", below.get("source")) != below.get("source"):
                merged[key] = value  # another source: the preset's path and name do not apply
            else:
                merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged
