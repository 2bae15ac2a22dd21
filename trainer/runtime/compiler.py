"""torch.compile if a compiler is available, the plain function otherwise.

Blocks are compiled separately, not the model as a whole: same speed once warm, and the first step
takes half the time (measured at depth 12: 41 s against 76 s), since layers share their code.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.runtime import cpu_isa
from trainer.runtime.by_shape import ByShape

RECOMPILE_LIMIT = 64  # kinds of layer x training and evaluation; torch's 8 is for one model


class Compiler:
    """Compiles functions, or records why it does not."""

    def __init__(self, wanted: bool, device: torch.device) -> None:
        self.reason = None if wanted else "not requested"
        if wanted:
            self.reason = missing(device) or launcher_fault(device)
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            # otherwise a backward pass is compiled inside autograd, without a fallback
            from torch._functorch import config as autograd

            autograd.force_non_lazy_backward_lowering = True
            if self.active and device.type == "cpu":
                cpu_isa.remember_answers()
            if torch.are_deterministic_algorithms_enabled():  # for the compiler too
                warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
                torch.use_deterministic_algorithms(True, warn_only=warn_only)

    @property
    def active(self) -> bool:
        return self.reason is None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.active:
            return function
        compiled = torch.compile(function, dynamic=False, fullgraph=True)

        def call(*args: Any) -> Any:
            if not self.active:
                return function(*args)
            try:
                return compiled(*args)
            except _compile_errors() as error:
                self.reason = _described(error)
                return function(*args)

        return call

    def pure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a pure function of tensors, None and tuples of them, which writes into no
        argument and returns none, with less host work per call. The returned function takes the
        kind of the call (`by_shape.py`) before the function's arguments."""
        if not self.active:
            return lambda _, *args: function(*args)
        by_shape = ByShape(function)

        def call(kind: Hashable, *args: Any) -> Any:
            if self.reason is not None:
                return function(*args)
            try:
                run = by_shape.prepared(kind, args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # tracing raises errors of every kind, as the function may
                self.reason = _described(error)
                return function(*args)
            return run(args)

        return call

    def let_vary(self, tensors: Iterable[Tensor]) -> None:
        """Mark the first size as dynamic: it differs from step to step, so compile once for all."""
        if self.active:
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)


def missing(device: torch.device) -> str | None:
    """Missing requirement of a compiler for this device, or None."""
    if device.type == "cuda":
        return _missing_for_triton()
    if device.type != "cpu":
        return f"torch.compile is not used on {device.type}"
    named = os.environ.get("CXX")
    names = (named,) if named else ("g++", "clang++", "gcc", "clang")
    return None if any(shutil.which(name) for name in names) else "no C++ compiler found"


def _missing_for_triton() -> str | None:
    """Missing requirement of Triton, which compiles launchers as C modules of this Python."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ((named,) if named else ("gcc", "clang"))):
        return "no C compiler found, which Triton needs (Debian: apt install gcc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"{header} is missing, which Triton needs (Debian: apt install python3-dev)"
    return None


def launcher_fault(device: torch.device) -> str | None:
    """Why Triton cannot build its kernel launcher, None if it can: an installed compiler may fail.
    Every kernel needs the launcher, also those that torch's compiler does not make."""
    if device.type != "cuda":
        return None
    try:
        from triton.runtime import driver  # pyright: ignore[reportMissingImports]

        driver.active.get_current_device()
    except Exception as error:  # of gcc, of the linker, of the import
        return f"Triton cannot build its launcher: {' '.join(str(error).split())[:200]}"
    return None


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _compile_errors() -> tuple[type[BaseException], ...]:
    """Errors of compiling, but not of running, which must propagate."""
    import torch._dynamo.exc as dynamo
    import torch._inductor.exc as inductor

    return (dynamo.TorchDynamoException, inductor.InductorError, inductor.CppCompileError)
