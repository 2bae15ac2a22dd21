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


def test_the_page_of_what_holds_names_tests_and_files_that_are_there() -> None:
    page = (ROOT / "docs/cuda.md").read_text()
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| ")][1:]
    named = [
        (name, where) for row in rows for name, where in zip(row[1:], ("", "tests/"), strict=True)
    ]
    for cell, below in named:
        folder = ROOT
        for name in cell.replace("`", "").split(","):
            path = ROOT / below / name.strip()
            found = path if path.exists() else folder / name.strip()
            assert found.exists() or any(ROOT.glob(f"trainer/**/{name.strip()}")), name
            folder = found.parent
