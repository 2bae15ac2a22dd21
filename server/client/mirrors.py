"""Mirrors: copies of a run's curves in TensorBoard and Weights & Biases.

The daemon's database remains the source; a mirror can be deleted and recreated.
"""

from __future__ import annotations

from collections import defaultdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from trainer.contract.evaluations import KIND_OF_METRIC

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.metrics import Series, SeriesPoint
    from server.schemas.runs import RunDetail

MAX_POINTS = 20_000  # per key; above that, means of bins


class Missing(Exception):
    """A mirror's library is not installed; the message names the package to install."""


class Mirror(Protocol):
    def put(self, tag: str, step: int, value: float, unix_seconds: float) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in directory/<run name>. Raises Missing, OSError."""

    def __init__(self, directory: Path, run: RunDetail) -> None:
        library = _library("tensorboardX", "pip install 'traind[tensorboard]'")
        self._writer = library.SummaryWriter(str(directory / run.name))
        self._writer.add_text("spec", f"```json\n{run.spec.model_dump_json(indent=1)}\n```", 0)

    def put(self, tag: str, step: int, value: float, unix_seconds: float) -> None:
        self._writer.add_scalar(tag, value, step, unix_seconds)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Weights & Biases run with the id of the traind run, so that a second copy resumes it.

    Values are logged by training step, not by order of arrival: steps repeat after a rewind.
    Raises Missing.
    """

    def __init__(self, project: str, run: RunDetail) -> None:
        library = _library("wandb", "pip install wandb")
        self._run = library.init(
            project=project, id=run.id, name=run.name, resume="allow",
            config=run.spec.model_dump(mode="json", exclude={"notify"}),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._waiting: defaultdict[int, dict[str, float]] = defaultdict(dict)

    def put(self, tag: str, step: int, value: float, unix_seconds: float) -> None:
        self._waiting[step] |= {tag: value, "unix_seconds": unix_seconds}

    def flush(self) -> None:
        for step, values in sorted(self._waiting.items()):
            self._run.log({"step": step, **values})
        self._waiting.clear()

    def close(self) -> None:
        self.flush()
        self._run.finish()


class Copier:
    """Copies the new values of a run into mirrors at each call. last: the last step copied."""

    def __init__(self, client: Client, run: str, mirrors: list[Mirror]) -> None:
        self._client, self._run, self._mirrors = client, run, mirrors
        self._evaluated: set[tuple[str, int, float]] = set()
        self._attempt = 0
        self.last = -1

    def copy(self) -> None:
        """Copy what is new; after a rewind of the run, copy again from the step it returned to."""
        self._go_back()
        answer = self._client.metrics(self._run, from_step=self.last + 1, max_points=MAX_POINTS)
        for series in answer.series:
            if series.key not in KIND_OF_METRIC:
                for point in series.points:
                    self._put(series, point)
                    self.last = max(self.last, point[0])
        # all evaluations each time, they are few: a job may evaluate an old checkpoint at any time
        answer = self._client.metrics(self._run, keys=list(KIND_OF_METRIC), max_points=MAX_POINTS)
        for series in answer.series:
            for point in series.points:
                place = (_tag(series), point[0], point[1])
                if place not in self._evaluated:
                    self._evaluated.add(place)
                    self._put(series, point)
        for mirror in self._mirrors:
            mirror.flush()

    def _go_back(self) -> None:
        """Set `last` to before the first step of the attempts started since the last call."""
        segments = self._client.metrics(self._run, keys=["loss"], max_points=1).segments
        begun = [s for s in segments if s.attempt > self._attempt]
        self._attempt = max([self._attempt, *(s.attempt for s in begun)])
        self.last = min([self.last, *(s.from_step - 1 for s in begun)])

    def _put(self, series: Series, point: SeriesPoint) -> None:
        step, seconds, mean, _, _ = point
        if mean is not None:
            for mirror in self._mirrors:
                mirror.put(_tag(series), step, mean, seconds)


def _tag(series: Series) -> str:
    """Tag of a curve; one per evaluation identity, as their values are not comparable."""
    return f"{series.key}/{series.identity[:8]}" if series.identity else series.key


def _library(name: str, remedy: str) -> ModuleType | Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed: {remedy}") from error
