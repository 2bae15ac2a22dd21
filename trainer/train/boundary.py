"""Step boundary across ranks: commands, signals and saves take effect at one step.

Inbox, signals and clock belong to one process. Rank 0 reads the inbox and the clock, and any rank
may get a signal to end; the ranks agree on a few numbers at each boundary. Commands themselves are
broadcast only when there are some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.contract import commands
from trainer.runtime.control import Control
from trainer.runtime.world import World


@dataclass(frozen=True)
class BoundaryInput:
    """Input of one boundary. commands: those received since the last one, in order. due: code of
    the due save, as rank 0 decided before the commands took effect."""

    commands: list[commands.AnyCommand]
    terminated: bool
    save_requested: bool
    due: int
    rows_due: bool

    @property
    def is_quiet(self) -> bool:
        """True if nothing was received that could change what is due."""
        return not (self.commands or self.save_requested)


def poll(
    world: World, control: Control, due: Callable[[], int], rows_due: Callable[[], bool]
) -> BoundaryInput:
    """Poll this process's inbox, signals and clock, and agree with the other ranks.

    due, rows_due: called on rank 0, and only if there are other ranks.
    """
    taken = control.take()
    terminated, save = control.terminated, control.take_save_request()
    if world.size == 1:
        return BoundaryInput(taken, terminated, save, 0, False)
    own = [int(terminated), int(save), int(bool(taken))]
    own += [due(), int(rows_due())] if world.leads else [0, 0]
    terminated, save, some, due_number, rows = world.all_reduce_max(own)
    if some:
        bodies = world.broadcast([command.model_dump() for command in taken])
        taken = [commands.ADAPTER.validate_python(body) for body in bodies]
    return BoundaryInput(taken, bool(terminated), bool(save), due_number, bool(rows))
