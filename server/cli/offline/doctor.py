"""`traind doctor`: diagnoses this machine and advises how to fix problems."""

from __future__ import annotations

import json as json_module
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from server.cli import options, output
from server.cli.offline import interpreter, slurm_probe
from trainer.contract import units

if TYPE_CHECKING:
    from server.settings import Settings

Level = Literal["ok", "warning", "problem"]
MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("!", "yellow"),
    "problem": ("FAIL", "bold red"),
}
TORCH_SECONDS = 60.0
LEAST_FREE_BYTES, FEW_FREE_BYTES = 1e9, 20e9
SERVER_PACKAGES = ("fastapi", "uvicorn", "pydantic", "sqlalchemy", "alembic", "httpx", "rich")

# Runs in the trainer's interpreter: this process does not import torch.
QUESTION = """
import importlib.metadata as m, json, os, platform, sys, sysconfig
found = {"python": platform.python_version(), "executable": sys.executable, "packages": {}}
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
found["missing_header"] = None if os.path.exists(header) else header
for name in ("torch", "numpy", "safetensors", "tiktoken", "rustbpe", "pyarrow", "huggingface_hub"):
    try:
        found["packages"][name] = m.version(name)
    except m.PackageNotFoundError:
        found["packages"][name] = None
try:
    import trainer
    found["trainer"] = True
except ImportError as error:
    found["trainer"] = str(error)
if found["packages"]["torch"]:
    import torch
    cuda = torch.cuda
    found["cuda_build"] = torch.version.cuda
    found["cuda"] = cuda.is_available()
    found["mps"] = torch.backends.mps.is_available()
    found["threads"] = torch.get_num_threads()
    found["devices"] = [
        {"device": f"cuda:{i}", "name": cuda.get_device_name(i),
         "memory_bytes": cuda.get_device_properties(i).total_memory,
         "bf16": cuda.is_bf16_supported()}
        for i in range(cuda.device_count())
    ] if found["cuda"] else []
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """Result of one check. advice: what to do; empty if nothing."""

    name: str
    level: Level
    detail: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Daemon")(doctor)


def doctor(
    timeout: Annotated[
        float, typer.Option(help="Time limit for the trainer's interpreter.")
    ] = TORCH_SECONDS,
    slurm: Annotated[
        bool, typer.Option(help="Also submit a short Slurm job that checks the shared disk.")
    ] = False,
    partition: Annotated[str | None, typer.Option(help="Slurm partition of that job.")] = None,
    json: options.Json = False,
) -> None:
    """Check device, versions, disk and daemon. Exit status 1 if runs cannot work."""
    from server.cli.offline.daemon import read_settings

    settings = read_settings()
    findings = list(examine(settings, timeout))
    if slurm:
        findings += slurm_findings(settings, partition, timeout)
    problems = [finding for finding in findings if finding.level == "problem"]
    if json:
        output.emit({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _print(finding)
        output.say("")
        warnings = sum(finding.level == "warning" for finding in findings)
        output.say(f"{len(problems)} problems, {warnings} warnings")
    if problems:
        raise typer.Exit(output.FAILED)


def examine(settings: Settings, torch_seconds: float = TORCH_SECONDS) -> Iterable[Finding]:
    """Yield every finding; the slow check of the trainer's interpreter comes last but one."""
    yield _python()
    yield _packages()
    yield _sqlite()
    yield _data_dir(settings)
    yield _disk(settings)
    answer = ask_trainer(settings.trainer_python, torch_seconds)
    if isinstance(answer, Finding):
        yield answer
    else:
        yield from trainer_findings(answer)
    yield from _driver(answer)
    yield compiler_finding(answer)
    yield _daemon()
    yield from _service()


def slurm_findings(settings: Settings, partition: str | None, seconds: float) -> Iterable[Finding]:
    """Findings of a Slurm job that checks whether a node shares the data directory."""
    try:
        found = slurm_probe.probe(settings.paths.root, settings.trainer_python, partition, seconds)
    except (slurm_probe.ProbeFailed, OSError) as error:
        advice = "put the data directory on a disk that the nodes share, or raise --timeout"
        yield Finding("slurm", "problem", str(error), advice)
        return
    took = f"output of a job on {found.host} appeared after {units.duration(found.seconds)}"
    yield Finding("slurm", "ok", f"{took}; rename and fsync work")
    if not found.has_trainer:
        yield Finding(
            "slurm trainer", "problem", f"{settings.trainer_python} has no trainer on {found.host}",
            "install traind on the shared disk, or set TRAIND_TRAINER_PYTHON to one there",
        )  # fmt: skip
    if found.skew_seconds > slurm_probe.MOST_SKEW_SECONDS:
        yield Finding(
            "slurm clocks", "warning", f"up to {units.duration(found.skew_seconds)} apart",
            "synchronise both by NTP: reports of nodes carry their times",
        )  # fmt: skip
    else:
        yield Finding("slurm clocks", "ok", f"at most {units.duration(found.skew_seconds)} apart")
    if found.flock == "seen":
        yield Finding("slurm locks", "ok", "a lock held here is respected on the node")
    else:
        yield Finding(
            "slurm locks", "warning", f"a lock held here does not lock nodes out ({found.flock})",
            "no action needed: a superseded trainer is fenced by rename",
        )  # fmt: skip


def ask_trainer(python: str, seconds: float) -> dict[str, Any] | Finding:
    """The report of the trainer's interpreter, or the finding that it failed."""
    try:
        answer = subprocess.run(
            [python, "-P", "-c", QUESTION],
            capture_output=True, text=True, timeout=seconds, check=False,
            env=interpreter.environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finding(
            "trainer", "problem", f"{python} did not answer in {units.duration(seconds)}",
            "the GPU driver may hang: try nvidia-smi, or raise --timeout",
        )  # fmt: skip
    except OSError as error:
        return Finding(
            "trainer", "problem", f"{python} cannot be started: {error.strerror}",
            "set TRAIND_TRAINER_PYTHON to the interpreter that has torch",
        )  # fmt: skip
    try:
        return json_module.loads(answer.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        summary = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        return Finding("trainer", "problem", f"{python}: {summary}", "reinstall torch there")


def trainer_findings(answer: dict[str, Any]) -> Iterable[Finding]:
    """Findings about the trainer's interpreter, from its answer."""
    packages: dict[str, str | None] = answer["packages"]
    missing = [name for name, found in packages.items() if found is None]
    summary = ", ".join(f"{name} {found}" for name, found in packages.items() if found)
    yield Finding(
        "trainer",
        "problem" if missing else "ok",
        f"Python {answer['python']} ({answer['executable']}), {summary or 'no packages'}",
        f"missing: {', '.join(missing)}; pip install 'traind[trainer]' there" if missing else "",
    )
    if answer.get("trainer") is not True:
        yield Finding(
            "trainer package", "problem", str(answer.get("trainer")), "install traind there as well"
        )
    if "cuda" not in answer:
        return
    for device in answer["devices"]:
        bf16 = "bf16" if device["bf16"] else "no bf16: fp32 or fp16 only"
        memory = units.num_bytes(device["memory_bytes"])
        yield Finding("device", "ok", f"{device['device']} {device['name']}, {memory}, {bf16}")
    if answer["mps"]:
        yield Finding("device", "ok", "mps")
    build = f"built for CUDA {answer['cuda_build']}" if answer["cuda_build"] else "the CPU build"
    yield Finding("device", "ok", f"cpu, {answer['threads']} threads; torch is {build}")


def _python() -> Finding:
    here = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", f"{here} ({sys.executable})")


def _packages() -> Finding:
    found = {}
    for name in SERVER_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    missing = [name for name, known in found.items() if not known]
    summary = ", ".join(f"{name} {known}" for name, known in found.items() if known)
    if missing:
        return Finding(
            "packages", "problem", summary, f"missing: {', '.join(missing)}; pip install"
        )
    return Finding("packages", "ok", summary)


def _sqlite() -> Finding:
    from server.database.sqlite import choose_library

    library = choose_library()
    summary = f"{library.name} {library.version}, journal mode {library.journal_mode}"
    if library.warning:
        return Finding("sqlite", "warning", summary, library.warning)
    return Finding("sqlite", "ok", summary)


def _data_dir(settings: Settings) -> Finding:
    path = settings.paths.root
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if os.access(nearest, os.W_OK | os.X_OK):
        state = "" if path.exists() else " (made at first start)"
        return Finding("data directory", "ok", f"{path}{state}")
    return Finding(
        "data directory", "problem", f"{path} cannot be written", "set TRAIND_DATA_DIR elsewhere"
    )


def _disk(settings: Settings) -> Finding:
    nearest = settings.paths.root
    while not nearest.exists():
        nearest = nearest.parent
    usage = shutil.disk_usage(nearest)
    summary = f"{units.num_bytes(usage.free)} free of {units.num_bytes(usage.total)}"
    if usage.free < LEAST_FREE_BYTES:
        return Finding("disk", "problem", summary, "free some space: checkpoints will not fit")
    if usage.free < FEW_FREE_BYTES:
        advice = "enough for small runs; a d12 needs about 2 GB per checkpoint (see traind plan)"
        return Finding("disk", "warning", summary, advice)
    return Finding("disk", "ok", summary)


def _driver(answer: dict[str, Any] | Finding) -> Iterable[Finding]:
    """Compare NVIDIA's driver with torch: report a GPU that torch cannot use."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, driver or permission: no usable GPU
        return
    driver, count = str(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlDeviceGetCount()
    pynvml.nvmlShutdown()
    if isinstance(answer, dict) and count and not answer.get("cuda"):
        build = answer.get("cuda_build")
        why = f"torch is built for CUDA {build}" if build else "torch is a CPU-only build"
        yield Finding(
            "driver", "problem", f"NVIDIA {driver}, {count} GPUs that torch does not see: {why}",
            "install the CUDA build of torch for this driver (pytorch.org, Get started)",
        )  # fmt: skip
    else:
        yield Finding("driver", "ok", f"NVIDIA {driver}, {count} GPUs")


def compiler_finding(answer: dict[str, Any] | Finding) -> Finding:
    """Finding about torch.compile; on a GPU Triton also builds modules of the interpreter."""
    found = next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )
    if not found:
        return Finding(
            "compiler", "warning", "no C++ compiler: runs continue without torch.compile, slower",
            "install one (Debian: apt install g++)",
        )  # fmt: skip
    header = answer.get("missing_header") if isinstance(answer, dict) else None
    if header and isinstance(answer, dict) and answer.get("cuda"):
        return Finding(
            "compiler", "warning",
            f"{header} is missing: GPU runs continue without torch.compile, slower",
            "install the headers of this Python (Debian: apt install python3-dev)",
        )  # fmt: skip
    return Finding("compiler", "ok", str(shutil.which(found)))


def _daemon() -> Finding:
    from server.client import ClientError

    try:
        with output.connect() as traind:
            began = time.perf_counter()
            system = traind.system()
            took = time.perf_counter() - began
    except ClientError as error:
        return Finding("daemon", "warning", str(error), "start it with: traind serve")
    summary = f"{traind.url}, version {system.version}, answers in {units.duration(took)}"
    if system.warnings:
        return Finding("daemon", "warning", summary, "; ".join(system.warnings))
    return Finding("daemon", "ok", summary)


def _service() -> Iterable[Finding]:
    from server.daemon import systemd

    if sys.platform != "linux":
        return
    if not systemd.unit_path().exists():
        yield Finding(
            "service", "warning", "not installed: runs do not resume automatically after a reboot",
            "traind service install",
        )  # fmt: skip
    elif not systemd.lingers():
        yield Finding(
            "service", "warning", f"{systemd.unit_path()}, but lingering is off for this user",
            "run loginctl enable-linger; otherwise it stops at logout and starts only at login",
        )  # fmt: skip
    else:
        yield Finding("service", "ok", f"{systemd.unit_path()}, lingering")


def _print(finding: Finding) -> None:
    from trainer.contract.text import clean

    mark, style = MARKS[finding.level]
    line = output.styled(f"{mark:<5}", style).append(f"{finding.name:<16}", style="bold")
    output.stdout().print(line.append(clean(finding.detail), style="default"), soft_wrap=True)
    if finding.advice:
        output.say(f"{'':<21}{clean(finding.advice)}", style)
