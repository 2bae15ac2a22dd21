"""The torch of `make setup`: none with CUDA where no GPU is, or one from the index named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e import clean_environment, package_index
from tests.e2e.clean_environment import ROOT

PINNED = next(
    line.removeprefix("torch==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.startswith("torch==")
)
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`pypi` has torch as it is there, with CUDA behind it; `cpu` has a build without."""
    place = tmp_path_factory.mktemp("indexes")
    package_index.add(place / "pypi", "torch", PINNED, ("nvidia-cublas",))
    package_index.add(place / "pypi", "nvidia-cublas", "13.0")
    package_index.add(place / "cpu", "torch", f"{PINNED}+cpu")
    return {path.name: path.as_uri() for path in place.iterdir()}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources beside an environment with everything but torch; the refusal leaves it so."""
    place = tmp_path_factory.mktemp("bare")
    copied = (*clean_environment.PACKAGED, "constraints.txt", "docker/install.sh")
    clean_environment.copy_sources(place / "src", copied)
    clean_environment.make(place / "venv", frozenset({"trainer"}), with_pip=True)
    for link in (place / "venv" / "dependencies").glob("torch*"):
        link.unlink()
    return place


def install(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make setup`'s script; of pip's settings here only the index counts."""
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_BUILD_ISOLATION": "0", "HOME": str(place)}
    return subprocess.run(
        ["sh", "docker/install.sh", str(place / "venv"), "trainer", "--no-editable"],
        cwd=place / "src", env={"PATH": os.environ["PATH"]} | own | environment,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def installed(place: Path) -> set[str]:
    site = next((place / "venv" / "lib").glob("python*/site-packages"))
    return {path.name.partition("-")[0] for path in site.glob("*.dist-info")}


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia/version"), reason="there is a GPU here")
def test_cuda_packages_are_refused_where_no_gpu_is(bare: Path, indexes: dict[str, str]) -> None:
    ran = install(bare, PIP_INDEX_URL=indexes["pypi"])
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "make setup TORCH_INDEX_URL=" in ran.stderr
    assert not installed(bare) & {"torch", "nvidia_cublas", "traind"}


SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")  # the last is WSL's


@pytest.mark.parametrize("there", [*SIGNS, "nvidia-smi", None])
def test_the_script_knows_a_gpu_by_the_files_of_its_driver(
    tmp_path: Path, there: str | None
) -> None:
    script = (ROOT / "docker/install.sh").read_text()
    function = script[script.index("has_gpu() {") :].partition("\n}")[0] + "\n}"
    for sign in SIGNS:
        assert sign in function
        own = tmp_path / sign.strip("/").replace("/", "-")
        function = function.replace(f"-e {sign} ", f"-e {own} ")
        if sign == there:
            own.touch()
    if there == "nvidia-smi":
        (tmp_path / there).write_text("#!/bin/sh\n")
        (tmp_path / there).chmod(0o755)
    asked = ["/bin/sh", "-c", f"{function}\nhas_gpu"]
    ran = subprocess.run(asked, env={"PATH": str(tmp_path)}, check=False)
    assert (ran.returncode == 0) == (there is not None)


def test_the_index_that_is_named_gives_torch_alone(bare: Path, indexes: dict[str, str]) -> None:
    ran = install(bare, PIP_INDEX_URL=indexes["pypi"], TORCH_INDEX_URL=indexes["cpu"])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert installed(bare) >= {"torch", "traind"}
    assert "nvidia_cublas" not in installed(bare)
    says = [str(bare / "venv/bin/python"), "-c", "import torch; print(torch.__version__)"]
    told = subprocess.run(says, capture_output=True, text=True, check=True).stdout
    assert told.strip() == f"{PINNED}+cpu"
