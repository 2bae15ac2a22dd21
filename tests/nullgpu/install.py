"""Install the null GPU's environment, once: `python -m tests.nullgpu.install VENV [--local]`.

It contains torch's CUDA build with NVIDIA's libraries, about 5 GB, and traind's dependencies.
--local: install only if pip has those packages on this machine's disk; otherwise download nothing,
print what is missing and exit with status 3. The version of torch: TRAIND_NULLGPU_TORCH or TORCH.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCH = "2.14.1"
NOT_LOCAL = 3
# packages of more than 100 MB
LARGE = re.compile(r"(torch|triton|nvidia-(cu(blas|dnn|fft|solver|sparse)|nccl|nvshmem).*)$")


def main(venv: Path, local: bool) -> int:
    """The exit status."""
    ready, requirements = venv / ".ready", _requirements()
    if ready.exists() and ready.read_text().splitlines() == requirements:
        return 0
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        wanted = [f"--constraint={_constraints(Path(folder))}", *requirements]
        if local and (far := remote(venv, wanted)):
            print(f"not on this machine's disk: {', '.join(far)}")
            return NOT_LOCAL
        _pip(venv, "install", "--quiet", *wanted)
    ready.write_text("\n".join(requirements))
    return 0


def remote(venv: Path, wanted: list[str]) -> list[str]:
    """The large packages that pip would download."""
    report = _pip(venv, "install", "--quiet", "--dry-run", "--report=-", *wanted)
    return [
        item["metadata"]["name"]
        for item in json.loads(report)["install"]
        if LARGE.match(item["metadata"]["name"])
        and not item["download_info"]["url"].startswith("file:")
    ]


def _requirements() -> list[str]:
    """Requirements of traind, its trainer and the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = os.environ.get("TRAIND_NULLGPU_TORCH", TORCH)
    trainer = [r for r in project["optional-dependencies"]["trainer"] if not r.startswith("torch")]
    return [f"torch=={version}", *project["dependencies"], *trainer, "pytest"]


def _constraints(folder: Path) -> Path:
    """The project's constraints file, without torch."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    file = folder / "constraints.txt"
    file.write_text("\n".join(pin for pin in pins if not pin.startswith("torch==")))
    return file


def _pip(venv: Path, *arguments: str) -> str:
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"pip cannot install the CUDA build of torch into {venv}: see above")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--local" in sys.argv[2:]))
