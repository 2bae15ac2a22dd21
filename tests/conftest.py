"""Fixtures, the `needs` marker, which tests are traced for coverage and which run a second time.

A test that needs root, strace, a browser, a Prometheus, Slurm or a GPU says so with `needs("…")`:
without it the test skips with the reason, and under TRAIND_TEST_REQUIRE=all the skip is a failure.
Never required are a GPU, a null GPU (which needs a CUDA build of torch: `make nullgpu` wants it),
Triton (which comes with torch for a GPU) and what a kernel may refuse even to root.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests import kernel, slurm_cluster
from tests.nullgpu import environment as nullgpu
from trainer.contract.gpu_signs import sign_of_gpu

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRAIND_LOG_LEVEL", "warning")
os.environ.pop("COLUMNS", None)  # a width that some plugin sets is not the width of a pipe

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"
TRACED = (HERE / "contract", HERE / "server", HERE / "trainer")  # others mostly start processes
END_TO_END = (HERE / "e2e", HERE / "test_soak_controls.py")
# Fixtures behind which a supervisor, a server or trainers run beside the test.
CONCURRENT = {
    "asgi", "colleague", "daemon", "fork_server", "hook", "house", "lab", "launcher", "served",
    "site", "stub",
}  # fmt: skip


def _has_gpu() -> bool:
    """Whether there is one that torch can use; torch is only asked where one seems to be."""
    if sign_of_gpu() is None:
        return False
    import torch

    return torch.cuda.is_available()


CONDITIONS = {
    "root": lambda: hasattr(os, "geteuid") and os.geteuid() == 0,
    "strace": lambda: shutil.which("strace") is not None,
    "browser": lambda: shutil.which("chromium") is not None,
    "prometheus": lambda: shutil.which("promtool") is not None,
    "slurm": slurm_cluster.is_there,
    "node": lambda: shutil.which("node") is not None,
    "gpu": _has_gpu,
    "nullgpu": lambda: nullgpu.missing() is None,
    "triton": lambda: importlib.util.find_spec("triton") is not None,
    "mounts": kernel.can_mount,
    "loop mounts": kernel.can_loop,
    "memory groups": kernel.can_limit_memory,
    "pid namespaces": kernel.can_choose_pids,
}
NEVER_REQUIRED = {
    "gpu", "nullgpu", "triton", "mounts", "loop mounts", "memory groups", "pid namespaces"
}  # fmt: skip


def pytest_itemcollected(item: pytest.Item) -> None:
    if _is_concurrent(item):
        item.add_marker(pytest.mark.flaky(reruns=1))  # listed as RERUN: it wants mending
    if not any(folder in item.path.parents for folder in TRACED):
        item.add_marker("no_cover")


def _is_concurrent(item: pytest.Item) -> bool:
    """True for a test that runs processes beside itself, or measures time."""
    return (
        item.get_closest_marker("no_cover") is not None
        or not CONCURRENT.isdisjoint(getattr(item, "fixturenames", ()))
        or any(path in (item.path, *item.path.parents) for path in END_TO_END)
    )


@pytest.hookimpl(wrapper=True, trylast=True)  # inside of pytest-cov's own
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Removes the tracer for `no_cover`: a pytest-xdist worker has two; pytest-cov pauses one."""
    is_measured = item.config.pluginmanager.hasplugin("_cov")  # else a tracer is a debugger's
    if not is_measured or item.get_closest_marker("no_cover") is None:
        return (yield)
    here, in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    try:
        return (yield)
    finally:
        sys.settrace(here)
        threading.settrace(in_threads)  # type: ignore[arg-type]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for what in mark.args:
            if CONDITIONS[what]():
                continue
            required = os.environ.get("TRAIND_TEST_REQUIRE")
            if what == required or (required == "all" and what not in NEVER_REQUIRED):
                pytest.fail(f"needs {what}, which is required here and missing", pytrace=False)
            pytest.skip(f"needs {what}, which is not here")


@pytest.fixture
def nanochat_d4() -> Path:
    """A real nanochat run: depth 4, planned for 60 steps, extended to 120."""
    return FIXTURES / "nanochat-d4"
