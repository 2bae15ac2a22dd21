"""The compiler's questions about the CPU are answered from memory; what is in doubt is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.cpu_vec_isa import VecAVX2, VecAVX512, VecISA

from trainer.runtime import cpu_isa

CODE = "int main() {}"


class Asked:
    """Stands where torch's own check stands; counts, and answers what it is told."""

    def __init__(self) -> None:
        self.times, self.answer = 0, True

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a new process does: torch's own check is there, and memory is read."""

        def check_build(unit: VecISA, code: str) -> bool:
            self.times += 1
            return self.answer

        monkeypatch.setattr(VecISA, "check_build", check_build)
        cpu_isa.remember_answers()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return Asked()


def test_a_yes_is_asked_once_for_each_unit_and_question(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        asked.start(monkeypatch)
        assert VecAVX2().check_build(CODE)
        assert VecAVX512().check_build(CODE)
        assert VecAVX2().check_build("another")
    assert asked.times == 3


def test_a_no_is_asked_again(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.answer = False
    asked.start(monkeypatch)
    assert not VecAVX2().check_build(CODE)
    asked.answer = True
    assert VecAVX2().check_build(CODE)
    assert asked.times == 2


@pytest.mark.parametrize("changed", ["torch", "compiler", "torn", "of another kind"])
def test_what_changed_is_asked_again(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    compiler, memory = tmp_path / "c++", tmp_path / cpu_isa.REMEMBERED
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    asked.start(monkeypatch)
    assert VecAVX2().check_build(CODE)
    change: dict[str, Any] = {
        "torch": lambda: monkeypatch.setattr(torch, "__version__", "9.9.9"),
        "compiler": lambda: compiler.write_text("updated"),
        "torn": lambda: memory.write_text(memory.read_text()[:9]),
        "of another kind": lambda: memory.write_text('{"key": 1}'),
    }
    change[changed]()
    asked.start(monkeypatch)
    assert VecAVX2().check_build(CODE)
    assert asked.times == 2


def test_remembering_twice_is_remembering_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.start(monkeypatch)
    first = VecISA.check_build
    cpu_isa.remember_answers()
    assert VecISA.check_build is first


def test_a_folder_that_takes_nothing_costs_only_the_memory(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / cpu_isa.REMEMBERED).mkdir()  # nothing can be put in its place
    asked.start(monkeypatch)
    assert VecAVX2().check_build(CODE)


def test_torch_still_asks_the_way_that_is_remembered(tmp_path: Path) -> None:
    """Two processes pick the same unit; only the first starts others to try it."""
    picked = [_pick(tmp_path), _pick(tmp_path)]
    unit, tried = zip(*picked, strict=True)
    assert unit[0] == unit[1]
    assert int(tried[1]) == 0
    if (tmp_path / cpu_isa.REMEMBERED).exists():  # an x86 CPU with vectors, and a compiler
        assert int(tried[0]) > 0


def _pick(cache: Path) -> tuple[str, str]:
    """(the unit that a new process picks, how many processes it started to try units)."""
    program = (
        "from torch._inductor import cpu_vec_isa\n"
        "from trainer.runtime import cpu_isa\n"
        "tried, load = [], cpu_vec_isa.VecISA._probe_load\n"
        "def probe(*a): tried.append(a); return load(*a)\n"
        "cpu_vec_isa.VecISA._probe_load = probe\n"
        "cpu_isa.remember_answers()\n"
        "print(f'{cpu_vec_isa.pick_vec_isa()}/{len(tried)}')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout.strip()  # fmt: skip
    unit, _, tried = answer.partition("/")
    return unit, tried
