"""torch.compile if a compiler is available, the plain function otherwise.

Blocks are compiled one by one, not the model as a whole: same speed once warm, and the first step
comes in half the time (measured at depth 12: 41 s against 76 s), since layers share their code.
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
    """Compiles functions, and says why it does not."""

    def __init__(self, wanted: bool, device: torch.device) -> None:
        self.reason = None if wanted else "not asked for"
        if wanted:
            self.reason = missing(device) or launcher_fault(device)
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            # a backward pass is else compiled inside autograd, where no one can fall back
            from torch._functorch import config as autograd

            autograd.force_non_lazy_backward_lowering = True
            if self.active and device.type == "cpu":
                cpu_isa.remember_answers()
            if torch.are_deterministic_algorithms_enabled():  # tells the compiler so, too
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
        """Like a call, for functions of tensors, None and tuples of them that write into no
        argument and return none: with less work of the host at each call. What is returned takes
        the kind of the call (`by_shape.py`) before the function's arguments."""
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
            except Exception as error:  # tracing has errors of every kind; so would the function
                self.reason = _described(error)
                return function(*args)
            return run(args)

        return call

    def let_vary(self, tensors: Iterable[Tensor]) -> None:
        """Their first size differs from step to step: compile once for all of them."""
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
    """Triton compiles kernels itself, and their launchers as modules of this Python."""
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
    """Why Triton cannot build what launches its kernels, None where it can: a compiler may be there
    and fail. Every kernel needs it, those too that torch's compiler does not make."""
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
    """Errors of compiling, none of running: those must be seen."""
    import torch._dynamo.exc as dynamo
    import torch._inductor.exc as inductor

    return (dynamo.TorchDynamoException, inductor.InductorError, inductor.CppCompileError)
