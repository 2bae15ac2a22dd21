"""Reads the CORE bundle (DCLM, arXiv 2406.11794) as untrusted input.

<bundle>/core.yaml, eval_meta_data.csv, eval_data/**.jsonl. Everything is capped before it is read,
nothing outside the directory is opened, and `sha256` names exactly what was read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.contract.recipe import RECIPES, RecipeName
from trainer.data.errors import reason

MAX_CONFIG_BYTES = 1_000_000
MAX_DATA_BYTES = 500_000_000
MAX_LINE_BYTES = 4_000_000
MAX_TASKS = 1000
MAX_ITEMS = 1_000_000
RECORD = "traind-bundle.json"  # written by fetch: the sha256 of each file

TaskType = Literal["multiple_choice", "schema", "language_modeling"]


class BundleError(ValueError):
    """The bundle cannot be used; the message names the file and the problem."""


class TaskSpec(BaseModel):
    """One entry of core.yaml; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    label: str = Field(min_length=1, max_length=200)
    dataset_uri: str = Field(min_length=1, max_length=1000)
    num_fewshot: list[int] = Field(min_length=1)
    icl_task_type: TaskType
    continuation_delimiter: str = " "


@dataclass(frozen=True)
class Task:
    """One task. items: one parsed JSON value per line, None if a line is not JSON.

    baseline: the accuracy of guessing, a fraction.
    """

    label: str
    kind: TaskType
    num_fewshot: int
    delimiter: str
    baseline: float
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Bundle:
    tasks: tuple[Task, ...]
    sha256: str


def load_bundle(path: str | Path) -> Bundle:
    """Read and verify the bundle in a directory. Raises BundleError."""
    root = Path(os.path.expanduser(path))
    digest = hashlib.sha256()
    recorded = _recorded(root)

    def read(relative: str, limit: int) -> bytes:
        content = _read_inside(root, relative, limit)
        found = hashlib.sha256(content).hexdigest()
        if recorded is not None and recorded.get(relative, found) != found:
            raise BundleError(f"{root / relative} is not the file that was fetched: fetch it again")
        digest.update(f"{relative}\0{found}\n".encode())
        return content

    specs = _task_specs(root / "core.yaml", read("core.yaml", MAX_CONFIG_BYTES))
    csv_name = "eval_meta_data.csv"
    baselines = _baselines(root / csv_name, read(csv_name, MAX_CONFIG_BYTES))
    tasks = []
    for spec in specs:
        if spec.label not in baselines:
            raise BundleError(f"{root / csv_name} has no random baseline for task {spec.label!r}")
        if not 0 <= spec.num_fewshot[0] <= 1000:
            raise BundleError(f"task {spec.label!r}: num_fewshot {spec.num_fewshot[0]}")
        name = f"eval_data/{_safe_relative(spec.dataset_uri)}"
        tasks.append(
            Task(
                label=spec.label,
                kind=spec.icl_task_type,
                num_fewshot=spec.num_fewshot[0],
                delimiter=spec.continuation_delimiter,
                baseline=baselines[spec.label],
                items=tuple(_items(root / name, read(name, MAX_DATA_BYTES))),
            )
        )
    return Bundle(tuple(tasks), digest.hexdigest())


def for_recipe(bundle: Bundle, recipe: RecipeName, max_per_task: int | None) -> Bundle:
    """The bundle as a recipe evaluates it: if the recipe says so, a task with fewer items than its
    few-shot examples shows as many examples as there are."""
    if not RECIPES[recipe].fewer_core_examples:
        return bundle
    tasks = tuple(_with_fewer_examples(task, max_per_task) for task in bundle.tasks)
    if tasks == bundle.tasks:
        return bundle
    shown = json.dumps([bundle.sha256, [task.num_fewshot for task in tasks]])
    return Bundle(tasks, hashlib.sha256(shown.encode()).hexdigest())


def _with_fewer_examples(task: Task, max_per_task: int | None) -> Task:
    count = len(task.items) if max_per_task is None else min(max_per_task, len(task.items))
    return replace(task, num_fewshot=min(task.num_fewshot, max(0, count - 1)))


# --- files ---------------------------------------------------------------------------------------


def _safe_relative(uri: str) -> str:
    """A plain relative POSIX path. Raises BundleError for a path that could leave the bundle."""
    parts = PurePosixPath(uri).parts
    bad = uri.startswith("/") or ".." in parts or any(c in uri for c in "\\\0:")
    if bad or not parts:
        raise BundleError(f"dataset_uri {uri!r} is not a relative path inside eval_data")
    return "/".join(parts)


def _read_inside(root: Path, relative: str, limit: int) -> bytes:
    path = root / relative
    try:
        if not path.resolve(strict=True).is_relative_to(root.resolve(strict=True)):
            raise BundleError(f"{path} leads out of the bundle")
        if not path.is_file():
            raise BundleError(f"{path} is not a file")
        with path.open("rb") as file:
            if path.stat().st_size > limit:
                raise BundleError(f"{path} is larger than {limit:,} bytes")
            content = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) > limit:
        raise BundleError(f"{path} is larger than {limit:,} bytes")
    return content


def _recorded(root: Path) -> dict[str, str] | None:
    """{relative path: sha256} recorded by the fetch; None for a bundle from elsewhere."""
    if not (root / RECORD).exists():
        return None
    try:
        files = json.loads(_read_inside(root, RECORD, MAX_DATA_BYTES))["files"]
        return {str(name): str(sha256) for name, sha256 in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleError(f"{root / RECORD} cannot be read: fetch the bundle again") from None


# --- contents ------------------------------------------------------------------------------------


class _NoAliases(yaml.SafeLoader):
    """Safe YAML without aliases: a small file cannot expand to a large object (billion laughs)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def _task_specs(path: Path, content: bytes) -> list[TaskSpec]:
    try:
        document = yaml.load(content, Loader=_NoAliases)
        entries = document["icl_tasks"]
        if not isinstance(entries, list) or not 0 < len(entries) <= MAX_TASKS:
            raise BundleError(f"{path}: icl_tasks is not a list of 1 to {MAX_TASKS} tasks")
        specs = [TaskSpec.model_validate(entry) for entry in entries]
    except (yaml.YAMLError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is not a CORE task list: {reason(error)}") from None
    except RecursionError:
        raise BundleError(f"{path} is nested too deeply") from None
    if len({spec.label for spec in specs}) != len(specs):
        raise BundleError(f"{path} names a task twice")
    return specs


def _baselines(path: Path, content: bytes) -> dict[str, float]:
    """{task: fraction right by guessing}; the file has percents."""
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        found = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise BundleError(f"{path} is not a table of random baselines: {error}") from None
    if not all(0 <= value < 1 for value in found.values()):
        raise BundleError(f"{path}: a random baseline is not between 0 and 100 percent")
    return found


def _items(path: Path, content: bytes) -> Iterator[Any]:
    lines = content.split(b"\n")
    if len(lines) > MAX_ITEMS:
        raise BundleError(f"{path} has more than {MAX_ITEMS:,} lines")
    for line in lines:
        if line.strip():
            yield _parsed(line)


def _parsed(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
