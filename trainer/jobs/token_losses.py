"""Token losses of an evaluation job: on a GPU by the code of the run's own evaluations.

It uses the run's attention and kernels, compiled with the caches that its training filled, so that
a checkpoint has the value that the run reported. On the CPU it uses the uncompiled forward pass,
whose bits depend on no compiler.
"""

from __future__ import annotations

from torch import Tensor

from trainer.contract import events
from trainer.evaluate.bpb import TokenLosses
from trainer.jobs.load_model import Loaded
from trainer.model import attention, attention_gradient, relu2
from trainer.model.trunk import Trunk
from trainer.runtime.compiler import Compiler
from trainer.runtime.reporter import Reporter
from trainer.train.compiled_losses import CompiledLosses


def of_checkpoint(loaded: Loaded, reporter: Reporter) -> TokenLosses | None:
    """The run's token losses; None for the model's own forward pass, which fp8 runs use too."""
    if loaded.model.device.type != "cuda" or loaded.frozen.get("fp8"):
        return None
    wanted = bool(loaded.frozen.get("compile", True))
    compiler = Compiler(wanted, loaded.model.device)
    losses = CompiledLosses(loaded.model, _trunk(loaded, compiler), compiler, loaded.rows)
    return FirstCompiles(losses, compiler, reporter) if wanted else losses


class FirstCompiles:
    """Losses of batches. The first batch compiles, reported as a stage. A compiler that is missing
    or fails is reported once."""

    def __init__(self, losses: TokenLosses, compiler: Compiler, reporter: Reporter) -> None:
        self._losses, self._compiler, self._reporter = losses, compiler, reporter
        self._first = True

    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if not self._first:
            return self._losses(tokens_BT, targets_BT)
        self._first = False
        self._reporter.emit(events.Stage(stage="compiling", detail="bpb"))
        found = self._losses(tokens_BT, targets_BT)
        if self._compiler.reason:
            self._reporter.emit(_compile_failed(self._compiler.reason))
        self._reporter.emit(events.Stage(stage="evaluating", detail="bpb"))
        return found


def _compile_failed(reason: str) -> events.Notice:
    return events.Notice(
        level="warning",
        code="compile_failed",
        message="torch.compile cannot be used, so the evaluation continues without it, slower: "
        f"{reason}. traind doctor checks what a compiler needs",
    )


def _trunk(loaded: Loaded, compiler: Compiler) -> Trunk:
    model, names = loaded.model, _attention(loaded)
    shape, dtype, where = model.shape, model.compute_dtype, model.device
    model.attend = {w: attention.bind(name, w) for w, name in names.items()}
    attend = {
        w: attention_gradient.choose(name, w, shape, dtype, where) for w, name in names.items()
    }
    tile = loaded.frozen.get("relu2") or relu2.COMPILED
    tile, _ = relu2.choose(tile, shape, loaded.rows, dtype, where, compiled=compiler.active)
    return Trunk(model, compiler.pure, attend, *relu2.pieces_with(tile))


def _attention(loaded: Loaded) -> dict[int | None, str]:
    """The run's attention backends; sdpa where this device lacks them or no attempt has chosen
    them, since autotuning would cost more than it saves here."""
    model, settled = loaded.model, loaded.frozen.get("attention") or {}
    where = (model.device, model.compute_dtype)
    names: dict[int | None, str] = {}
    for window in model.shape.windows:
        name = settled.get(str(window))
        if name is None or not attention.is_there(name, *where):
            name = attention.candidates(*where, window, model.shape.sequence_len)[0]
        names[window] = name
    return names
