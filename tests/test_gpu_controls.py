"""The controls of what holds on a card can still be run: python -m tests.gpu_controls runs them."""

from __future__ import annotations

import ast

import pytest

from tests.gpu_controls import CONTROLS, ROOT, Control, undone


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_a_mend_can_be_undone_and_its_test_is_there(control: Control) -> None:
    ast.parse(undone(control))
    file, _, name = control.test.partition("::")
    assert f"def {name}" in (ROOT / file).read_text()


def test_the_page_of_what_holds_names_a_test_in_each_row() -> None:
    """That the files are there is looked at for every page: tests/test_repository.py."""
    page = (ROOT / "docs/cuda.md").read_text()
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for what, where, test in rows:
        assert ".py`" in where or ".sh`" in where, what
        assert "`tests/" in test, what
