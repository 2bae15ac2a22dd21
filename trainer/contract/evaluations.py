"""Registry of evaluations: kind, label, metric, direction and job of what is measured of weights.

Schemas, training, jobs, command line, report, Prometheus and dashboard take these from here. Unit,
format and gauge of a value are those of its metric. A new evaluation is one entry in EVALUATIONS,
its metric in METRICS, its cadence in EvaluateSpec and the functions that measure it
(`trainer/train/evaluations.py` between steps, `trainer/jobs/evaluate.py` of a checkpoint).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainer.contract.spec import EvaluateSpec

EvaluationKind = Literal["bpb", "core"]  # with a value
MeasurementKind = Literal[EvaluationKind, "sample"]


@dataclass(frozen=True)
class Measurement:
    """One kind of measurement of the weights. label: its name in tables and messages.

    job: kind of the job that does it outside of training. needs: field of EvaluateSpec without
    which it is never due.
    """

    kind: MeasurementKind
    label: str
    job: str
    needs: str | None = None

    def cadence(self, asked: EvaluateSpec) -> int | Literal["end"] | None:
        """Steps between two of them in training; None is never."""
        if self.needs and not getattr(asked, self.needs):
            return None
        return getattr(asked, f"{self.kind}_every")


@dataclass(frozen=True, kw_only=True)
class EvaluationType(Measurement):
    """A measurement with a value. metric: key of its curve in METRICS.

    title: a sentence for forms and help. cost: how long it takes where that matters, for people.
    digits: decimals of a single value, which is compared bit for bit, unlike a point of the curve.
    """

    kind: EvaluationKind
    metric: str
    title: str
    higher_is_better: bool
    cost: str = ""
    job: str = "evaluate"
    digits: int = 6

    def score(self, value: float) -> float:
        """The value as one of which the lowest is the best."""
        return -value if self.higher_is_better else value

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


EVALUATIONS: tuple[EvaluationType, ...] = (
    EvaluationType(
        kind="bpb", label="val bpb", metric="val_bpb", title="Validation loss in bits per byte.",
        higher_is_better=False,
    ),
    EvaluationType(
        kind="core", label="CORE", metric="core", title="CORE score.", higher_is_better=True,
        cost="minutes to hours", needs="core_bundle",
    ),
)  # fmt: skip
MEASUREMENTS: tuple[Measurement, ...] = (
    *EVALUATIONS,
    Measurement("sample", "samples", job="sample", needs="prompts"),
)

BY_KIND: dict[str, EvaluationType] = {one.kind: one for one in EVALUATIONS}
KIND_OF_METRIC: dict[str, str] = {one.metric: one.kind for one in EVALUATIONS}
