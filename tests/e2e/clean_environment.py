"""Virtual environments that hold what our package declares and nothing else, without a network.

Dependencies are links to those of the running environment: exactly the ones that follow from the
package's own metadata, so that a forgotten one is missed here as it would be elsewhere.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGED = ("server", "trainer", "migrations", "pyproject.toml", "README.md", "alembic.ini")


def copy_sources(place: Path, names: tuple[str, ...] = PACKAGED) -> Path:
    """What a build reads, without what an earlier build or run left beside it."""
    place.mkdir(parents=True)
    for name in names:
        source, target = ROOT / name, place / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return place


def build_wheel(sources: Path, place: Path) -> Path:
    _run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps",
        "--no-build-isolation", "--wheel-dir", str(place), str(sources),
    )  # fmt: skip
    (wheel,) = place.glob("traind-*.whl")
    return wheel


def make(place: Path, extras: frozenset[str], *, with_pip: bool = False) -> Path:
    """A new environment with the dependencies that these extras ask for; its interpreter.

    with_pip: what pip would fetch to build the package is there as well.
    """
    _run(sys.executable, "-m", "venv", "--without-pip", str(place))
    links = place / "dependencies"
    links.mkdir()
    tools = {"pip", "setuptools"} if with_pip else set()
    for name in sorted(declared(extras) | tools):
        _link(name, links)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (place / "lib" / version / "site-packages" / "dependencies.pth").write_text(f"{links}\n")
    return place / "bin" / "python"


def install(wheel: Path, python: Path) -> None:
    _run(
        sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index",
        "--no-deps", str(wheel),
    )  # fmt: skip


def declared(extras: frozenset[str]) -> set[str]:
    """Every distribution that pyproject.toml asks for, and what those ask for, and so on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    found: set[str] = set()
    waiting = [(Requirement(line), frozenset[str]()) for line in lines]
    while waiting:
        wanted, of = waiting.pop()
        if wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in of or {""}):
            continue
        try:
            here = distribution(wanted.name)
        except PackageNotFoundError as error:
            raise AssertionError(f"{wanted.name} is declared and not installed here") from error
        assert wanted.specifier.contains(here.version, prereleases=True), (wanted, here.version)
        name = canonicalize_name(wanted.name)
        if name not in found:
            found.add(name)
            asked = frozenset(wanted.extras)
            waiting += [(Requirement(line), asked) for line in here.requires or []]
    return found


def _link(name: str, links: Path) -> None:
    """Links to the folders and modules at the top of a distribution."""
    site = Path(sysconfig.get_paths()["purelib"])
    for top in {file.parts[0] for file in distribution(name).files or []}:
        is_ours = top not in ("..", "__pycache__") and (site / top).exists()
        if is_ours and not (links / top).exists():
            (links / top).symlink_to(site / top)


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
