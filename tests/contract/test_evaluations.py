"""One registry of evaluations, from which everything that lists their kinds takes them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from server.api import catalog
from server.schemas.evaluations import EvaluationView
from trainer.contract import commands, events, metrics
from trainer.contract.evaluations import (
    BY_KIND,
    EVALUATIONS,
    KIND_OF_METRIC,
    MEASUREMENTS,
    EvaluationKind,
    MeasurementKind,
)
from trainer.contract.jobs import EvaluateParams
from trainer.contract.orders import JobOrder
from trainer.contract.spec import EvaluateSpec

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "trainer" / "contract" / "evaluations.py"


def test_the_registry_has_the_kinds_of_the_events_the_jobs_and_the_commands() -> None:
    assert tuple(BY_KIND) == get_args(EvaluationKind)
    assert {one.kind for one in MEASUREMENTS} == set(get_args(MeasurementKind))
    for model in (events.EvaluationResult, EvaluationView):
        field = "evaluation" if model is events.EvaluationResult else "kind"
        assert get_args(model.model_fields[field].annotation) == get_args(EvaluationKind)
    for kind in BY_KIND:
        assert kind in EvaluateParams.model_fields
        assert kind in commands.Evaluate.model_fields
    jobs = get_args(JobOrder.model_fields["job"].annotation)
    assert {one.job for one in MEASUREMENTS} <= set(jobs)


def test_each_evaluation_is_a_metric_and_each_evaluated_metric_has_its_evaluation() -> None:
    evaluated = [m.key for m in metrics.METRICS if m.source == "evaluation"]
    assert list(KIND_OF_METRIC) == evaluated


def test_an_evaluation_is_due_by_its_cadence_if_it_has_what_it_needs() -> None:
    asked = EvaluateSpec(bpb_every=3, core_every="end", sample_every=5)
    assert [one.cadence(asked) for one in MEASUREMENTS] == [3, None, None]
    given = asked.model_copy(update={"core_bundle": "/bundle", "prompts": ["a"]})
    assert [one.cadence(given) for one in MEASUREMENTS] == [3, "end", 5]


@pytest.mark.parametrize(("kind", "best"), [("bpb", 0.8), ("core", 0.9)])
def test_the_direction_decides_which_value_is_the_best(kind: str, best: float) -> None:
    assert min((0.8, 0.9), key=BY_KIND[kind].score) == best


def test_the_catalog_has_the_registry() -> None:
    shown = catalog.catalog().evaluations
    assert [(e.kind, e.label, e.metric, e.higher_is_better, e.digits) for e in shown] == [
        (e.kind, e.label, e.metric, e.higher_is_better, e.digits) for e in EVALUATIONS
    ]


def test_no_module_lists_the_kinds_a_second_time() -> None:
    """A tuple, list, set, dict or Literal of more than one kind, or of their metrics."""
    words = {*BY_KIND, *KIND_OF_METRIC}
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in [*ROOT.glob("server/**/*.py"), *ROOT.glob("trainer/**/*.py")]
        if path != REGISTRY
        for line, strings in _collections(ast.parse(path.read_text()))
        if len(strings & words) > 1
    ]
    allowed = {"trainer/jobs/evaluate.py", "trainer/train/evaluations.py"}  # what measures each
    assert {place.partition(":")[0] for place in found} <= allowed, found


def test_no_script_of_the_page_lists_the_kinds() -> None:
    names = "|".join({*BY_KIND, *KIND_OF_METRIC, *(e.label for e in EVALUATIONS)})
    listed = re.compile(rf"[\"'](?:{names})[\"'][^\n;]*[\"'](?:{names})[\"']")
    scripts = (p for p in (ROOT / "server" / "web").rglob("*.js") if "vendor" not in p.parts)
    assert [p.name for p in scripts if listed.search(p.read_text())] == []


def _collections(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            yield node.lineno, _strings(node.elts)
        elif isinstance(node, ast.Dict):
            yield node.lineno, _strings([key for key in node.keys if key is not None])


def _strings(nodes: list[ast.expr]) -> set[str]:
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
