"""The repository itself: examples that plan, pages that exist, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from server.daemon import systemd
from server.domain.states import VERBS
from server.settings import Settings
from trainer.contract.plan import make_plan
from trainer.contract.plan.context import PlanContext
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


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("card-*.yaml")), ids=lambda path: path.stem
)
def test_the_example_of_a_card_fits_it(path: Path) -> None:
    """With the tenth left free that a plan warns about."""
    size = int(path.stem.removeprefix("card-").removesuffix("gb")) * 1_000_000_000
    plan = make_plan(
        resolve(yaml.safe_load(path.read_text())), PlanContext(device_memory_bytes=size)
    )
    assert plan.memory.available == size
    assert plan.memory.expected <= 0.9 * size
    assert not [text for text in plan.warnings if "memory" in text]


def test_the_12_gb_example_is_the_preset() -> None:
    body = yaml.safe_load((ROOT / "examples" / "card-12gb.yaml").read_text())
    preset = resolve({"name": body["name"], "preset": "rtx4070-d12"})
    assert resolve(body).model_dump(exclude={"preset"}) == preset.model_dump(exclude={"preset"})


def test_the_systemd_example_is_what_the_installer_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    example = (ROOT / "examples" / "traind.service").read_text()
    assert example == systemd.unit([], python="/opt/traind/.venv/bin/python")


def test_the_compose_example_starts_the_image_as_the_dockerfile_makes_it() -> None:
    service = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text())["services"]["traind"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    port = Settings.model_fields["port"].default
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert [volume.split(":")[1] for volume in service["volumes"]] == re.findall(
        r"TRAIND_DATA_DIR=(\S+)", dockerfile
    )
    gpus = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text())["services"]["traind"]
    assert service["deploy"] == gpus["deploy"]


def test_every_example_is_in_the_table() -> None:
    table = (ROOT / "examples" / "README.md").read_text()
    files = {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} - {"README.md"}
    assert set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)) == files


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" in target or target.startswith(("mailto:", "reference/")):
            continue
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md",
     ".pre-commit-config.yaml", ".github/workflows/ci.yml", ".github/ISSUE_TEMPLATE/bug.yml",
     ".github/ISSUE_TEMPLATE/feature.yml", "server/py.typed", "trainer/py.typed"],
)  # fmt: skip
def test_what_people_look_for_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_paths_named_in_the_pages_exist() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for path in PATH.findall(page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("program", ["server", "trainer"])
def test_every_package_and_module_at_the_top_is_in_the_table_of_the_architecture(
    program: str,
) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    parts = {
        f"{program}/{path.name}"
        for path in (ROOT / program).iterdir()
        if (path.suffix == ".py" and path.name != "__init__.py")
        or (path.is_dir() and any(file.suffix in (".py", ".js") for file in path.rglob("*.*")))
    }
    assert len(parts) > 8
    assert parts <= set(re.findall(r"`([^`]+)`", table))


FILE_METHODS = {
    "open", "fdopen", "stat", "lstat", "exists", "is_file", "is_dir", "is_symlink", "iterdir",
    "glob", "rglob", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "rmdir",
    "unlink", "touch", "symlink_to",
}  # fmt: skip


def test_handlers_open_and_look_at_no_file() -> None:
    """Beside the import contract: a path that is handed to a handler has methods of its own."""
    for path in sorted((ROOT / "server" / "api").rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            named = getattr(call.func, "attr", getattr(call.func, "id", ""))
            assert named not in FILE_METHODS, f"{path.name}:{call.lineno} calls {named}"


def test_each_status_of_a_decision_is_defined_in_the_header() -> None:
    header, _, entries = " ".join((ROOT / "DECISIONS.md").read_text().split()).partition(" ## ")
    statuses = set(re.findall(r"\*\d{4}-\d\d-\d\d, ([^*]+)\.\*", entries))
    assert {"accepted", "accepted, untested on a GPU"} <= statuses
    assert statuses <= set(re.findall(r"\*(accepted[^*]*)\*", header))


def test_the_verbs_of_the_page_are_legal_in_the_states_it_lists() -> None:
    page = (ROOT / "docs" / "api.md").read_text().partition("## Verbs")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", page, re.MULTILINE)
    assert {verb: states.split(", ") for verb, states in rows} == {
        verb: [state.value for state, legal in VERBS.items() if verb in legal]
        for verb in {verb for legal in VERBS.values() for verb in legal}
    }


def test_the_faults_of_the_page_are_those_that_tests_name() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    prefixes = [
        prefix
        for path in (ROOT / "tests").rglob("*.py")
        for prefix in re.findall(r"^ *(?:async )?def test_((?:f\d+_)+)", path.read_text(), re.M)
    ]
    assert rows == sorted({int(number) for p in prefixes for number in re.findall(r"\d+", p)})


def test_the_workflow_and_the_hooks_call_targets_and_tools_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    called = re.findall(r"run: make ([a-z-]+)", workflow)
    called += re.findall(r"^\s*make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"test", "docs"} <= set(called) <= targets
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    printed = re.search(r"coverage report.*s/\.\*/(coverage of [^&]+)", makefile)
    assert printed is not None
    assert 'grep "^coverage of"' in workflow  # the figure that make test prints, in the summary
    for hook in hooks:
        assert hook["entry"].split()[0] in makefile, f"make check does not run {hook['id']}"


def test_classifiers_and_workflow_name_the_same_versions_of_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if ":: Python :: 3." in c]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= project["urls"].keys()


REPLACED = (
    "It was asked for.", "Show what was set aside", "of disk are free", "the new curve stands at",
    "weight decay steps from", "That is not possible now", '"Understood"', "is durable (",
    "choices were fixed for the run", "At least so long without a step", "At most so many",
    "Say which this is", "The request cannot be meant", "not JSON that can be meant",
    "nothing was heard of it", "was restarted under it", "Put the file back", "asks nobody for",
    "It comes back by itself", "is no database of", "A fault of the daemon", "forevery",
)  # fmt: skip


def test_wordings_that_were_replaced_do_not_come_back() -> None:
    sources = [
        path
        for folder in ("server", "trainer", "docs")
        for suffix in ("py", "js", "md")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    assert len(sources) > 300
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    found = [
        (path.name, words) for path, text in texts.items() for words in REPLACED if words in text
    ]
    assert found == []
