"""Controls of what holds on a card: each mend undone in a copy of the project, its test must fail.

    python -m tests.gpu_controls [--null] [NAME …]

Without --null only those whose tests need no null GPU. Prints a line for each; the exit status is
1 when a test passes without its mend.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.nullgpu import environment

ROOT = Path(__file__).parents[1]
COPIED = ("server", "trainer", "tests", "pyproject.toml", "migrations", "alembic.ini")
SECONDS = 900


@dataclass(frozen=True)
class Control:
    """`mend` in `file` replaced by `undone`: `test` (a file, or a test in it) must fail."""

    name: str
    file: str
    mend: str
    undone: str
    test: str

    @property
    def on_null_gpu(self) -> bool:
        return self.test.startswith("tests/nullgpu")


CONTROLS = (
    Control(
        "one tensor for two arguments", "trainer/runtime/by_shape.py",
        "apart = [leaf.detach() for leaf in leaves]", "apart = leaves",
        "tests/trainer/test_by_shape.py",
    ),
    Control(
        "every layer its own input", "trainer/runtime/by_shape.py",
        "apart = [leaf.detach() for leaf in leaves]", "apart = leaves",
        "tests/trainer/test_trunk.py::test_the_pieces_as_they_are_traced_compute_every_layer",
    ),
    Control(
        "a broken compiler", "trainer/runtime/compiler.py",
        "except _compile_errors() as error:", "except ZeroDivisionError as error:",
        "tests/trainer/test_broken_compiler.py",
    ),
    Control(
        "caches under the data directory", "server/launch/process.py",
        "**(_compiler_caches(compiled) if compiled is not None else {}),", "",
        "tests/server/test_gpu_environment.py",
    ),
    Control(
        "segments that grow", "server/launch/process.py",
        'return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}', "return {}",
        "tests/server/test_gpu_environment.py",
    ),
    Control(
        "memory not everywhere named", "server/machine/readings.py",
        "int(p.usedGpuMemory or 0) for p", "int(p.usedGpuMemory) for p",
        "tests/server/test_gpu_environment.py",
    ),
    Control(
        "sensors singly", "trainer/runtime/device.py",
        "    except pynvml.NVMLError:\n        return None\n\n\ndef _peak_rss", "    except "
        "ZeroDivisionError:\n        return None\n\n\ndef _peak_rss",
        "tests/trainer/test_gpu_faults.py",
    ),
    Control(
        "determinism in error mode", "trainer/runtime/device.py",
        '"warn" if device.type == "mps" else "error"', '"warn"',
        "tests/trainer/test_gpu_faults.py",
    ),
    Control(
        "a wrong backend loses", "trainer/model/attention.py",
        "if found is not None and autotune.agree([t[:1] for t in found], right):",
        "if found is not None:",
        "tests/trainer/test_attention.py",
    ),
    Control(
        "varlen of torch 2.11", "trainer/model/attention.py",
        '{"enable_gqa": True} if q.size(2) != k.size(2) else {}', '{"enable_gqa": True}',
        "tests/trainer/test_attention.py",
    ),
    Control(
        "an error of another card", "server/machine/kernel_log.py",
        'if pci is None or m["where"].lower().partition(".")[0] == pci', "",
        "tests/nullgpu/test_faults.py::test_an_error_of_the_card_is_heard_without_the_kernels_log",
    ),
    Control(
        "the block mask of flex", "trainer/model/attention.py",
        "@lru_cache(maxsize=8)\ndef _block_mask", "@lru_cache(maxsize=0)\ndef _block_mask",
        "tests/nullgpu/test_faults.py::test_a_block_mask_is_built_once_for_each_window",
    ),
    Control(
        "an evaluation's memory", "trainer/train/evaluations.py",
        "        torch.cuda.empty_cache()", "        pass",
        "tests/nullgpu/test_returned_memory.py",
    ),
    Control(
        "a compiler that fails on a card", "trainer/runtime/compiler.py",
        "missing(device) or launcher_fault(device)", "missing(device)",
        "tests/nullgpu/test_faults.py::test_a_compiler_that_fails_leaves_the_step_uncompiled",
    ),
    Control(
        "pinned memory of exact size, or none", "trainer/checkpoint/host_buffers.py",
        "            self.refused =", "            raise MemoryError  # ",
        "tests/nullgpu/test_pinned.py",
    ),
    Control(
        "memory of races", "trainer/train/setup.py",
        "        torch.cuda.empty_cache()  # give autotuning's memory back to other programs",
        "        pass",
        "tests/nullgpu/test_start.py",
    ),
    Control(
        "memory pinned at the start", "trainer/train/setup.py",
        'if where.type == "cuda" and world.leads:', "if False:",
        "tests/nullgpu/test_start.py",
    ),
    Control(
        "batches of a step in flight", "trainer/train/loop.py",
        "step, batches.own, Reading(result)", "step, [], Reading(result)",
        "tests/trainer/test_loop_beside_a_gpu.py",
    ),
    Control(
        "the evaluation job compiled", "trainer/jobs/token_losses.py",
        "compiler = Compiler(wanted, ", "compiler = Compiler(False, ",
        "tests/nullgpu/test_evaluate_job.py",
    ),
    Control(
        "Muon compiled", "trainer/train/step.py",
        "            optimizer.muon = self.compiler(optimizer.muon)\n", "",
        "tests/nullgpu/test_life.py",
    ),
    Control(
        "AdamW's rates in its kernel", "trainer/train/step.py",
        "            optimizer.adamw_from_count = self.compiler(adamw_from_count)\n", "",
        "tests/nullgpu/test_life.py",
    ),
)  # fmt: skip


def main() -> int:
    ask = argparse.ArgumentParser()
    ask.add_argument("--null", action="store_true")
    ask.add_argument("names", nargs="*")
    asked = ask.parse_args()
    wanted = [c for c in CONTROLS if c.name in asked.names or not asked.names]
    passed = 0
    for control in wanted:
        if control.on_null_gpu and not asked.null:
            continue
        fails = fails_without(control)
        passed += not fails
        print(f"{'fails' if fails else 'PASSES'} without its mend: {control.name}", flush=True)
    return int(passed > 0)


def fails_without(control: Control) -> bool:
    """Whether the test fails with the mend undone; raises where it cannot be undone any more."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy / name)
        if environment.FOLDER.exists():  # the stubs and the compilers' caches
            (copy / environment.FOLDER.name).symlink_to(environment.FOLDER)
        (copy / control.file).write_text(undone(control))
        required = {"TRAIND_TEST_REQUIRE": "nullgpu"} if control.on_null_gpu else {}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, control.test],
            cwd=copy, env={**os.environ, **required, "PYTHONPATH": str(copy)}, timeout=SECONDS,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode not in (0, 1):  # 1: a test failed
            raise RuntimeError(f"{control.test} did not run:\n{done.stdout[-3000:]}{done.stderr}")
        return done.returncode == 1


def undone(control: Control) -> str:
    text = (ROOT / control.file).read_text()
    if text.count(control.mend) != 1:
        raise ValueError(f"{control.name}: {control.file} has no longer just one {control.mend!r}")
    return text.replace(control.mend, control.undone)


if __name__ == "__main__":
    sys.exit(main())
