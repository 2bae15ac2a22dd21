"""Registry of launchers: one of each kind, and the kind that starts an order."""

from __future__ import annotations

from server.launch import local, torchrun
from server.launch.launcher import Launcher
from server.launch.slurm import launcher as slurm
from server.settings import Settings
from trainer.contract.spec import PlaceSpec

# Kinds whose processes run on this machine, so that the pid of a report names one of them.
ON_THIS_MACHINE = frozenset({local.NAME, torchrun.NAME})


def make(settings: Settings) -> dict[str, Launcher]:
    """One of each kind, by the name that the rows keep."""
    kinds = (local.Local, torchrun.Torchrun)
    arguments = (settings.trainer_python, settings.token_cache_bytes, settings.paths.compiled)
    made: dict[str, Launcher] = {kind.name: kind(*arguments) for kind in kinds}
    made[slurm.NAME] = slurm.SlurmLauncher(*arguments, settings.slurm_prologue)
    return made


def name_for(ranks: int, place: PlaceSpec | None = None) -> str:
    if place is not None:
        return slurm.NAME
    return torchrun.NAME if ranks > 1 else local.NAME
