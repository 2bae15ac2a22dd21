"""Make the null GPU's environment, once: `python -m tests.nullgpu.install VENV [--local]`.

torch's own build for CUDA with NVIDIA's libraries, about 5 GB, beside what traind needs. --local:
only where pip has those packages on this machine's disk; otherwise nothing is downloaded, what is
missing is printed and the exit status is 3. The version of torch: TRAIND_NULLGPU_TORCH or TORCH.
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
    """Of the large packages that pip would install, those it would download."""
    report = _pip(venv, "install", "--quiet", "--dry-run", "--report=-", *wanted)
    return [
        item["metadata"]["name"]
        for item in json.loads(report)["install"]
        if LARGE.match(item["metadata"]["name"])
        and not item["download_info"]["url"].startswith("file:")
    ]


def _requirements() -> list[str]:
    """What traind, its trainer and the scenes need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = os.environ.get("TRAIND_NULLGPU_TORCH", TORCH)
    trainer = [r for r in project["optional-dependencies"]["trainer"] if not r.startswith("torch")]
    return [f"torch=={version}", *project["dependencies"], *trainer, "pytest"]


def _constraints(folder: Path) -> Path:
    """The project's, without its own torch."""
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
