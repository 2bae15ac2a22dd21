"""The repository itself: examples that plan, pages that exist, links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from trainer.contract.plan import make_plan
from trainer.contract.spec import resolve

ROOT = Path(__file__).parents[1]
SPECS = [*sorted((ROOT / "examples").glob("card-*.yaml")), ROOT / "examples" / "own-text.yaml"]
PAGES = sorted(
    page for folder in (".", "docs", "examples") for page in (ROOT / folder).glob("*.md")
)
PATH = re.compile(r"`((?:server|trainer|tests|docker|migrations)/[\w./-]+)`")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_example_specs_resolve_and_plan(path: Path) -> None:
    plan = make_plan(resolve(yaml.safe_load(path.read_text())))
    assert plan.horizon.steps > 0


def test_the_12_gb_example_is_the_preset() -> None:
    body = yaml.safe_load((ROOT / "examples" / "card-12gb.yaml").read_text())
    preset = resolve({"name": body["name"], "preset": "rtx4070-d12"})
    assert resolve(body).model_dump(exclude={"preset"}) == preset.model_dump(exclude={"preset"})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" in target or target.startswith(("mailto:", "reference/")):
            continue
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md",
     ".pre-commit-config.yaml", ".github/workflows/ci.yml", "server/py.typed", "trainer/py.typed"],
)  # fmt: skip
def test_what_people_look_for_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_paths_named_in_the_pages_exist() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for path in PATH.findall(page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
