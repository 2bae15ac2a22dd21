"""Registry of launchers: one instance of each, and the one that starts a given order."""

from __future__ import annotations

from server.launch import local, torchrun
from server.launch.launcher import Launcher
from server.launch.slurm import launcher as slurm
from server.settings import Settings
from trainer.contract.spec import PlaceSpec

# Launchers whose processes run on this machine, so that a reported pid is valid here.
ON_THIS_MACHINE = frozenset({local.NAME, torchrun.NAME})


def make(settings: Settings) -> dict[str, Launcher]:
    """All launchers, by their name in the database."""
    kinds = (local.Local, torchrun.Torchrun)
    arguments = (settings.trainer_python, settings.token_cache_bytes, settings.paths.compiled)
    made: dict[str, Launcher] = {kind.name: kind(*arguments) for kind in kinds}
    made[slurm.NAME] = slurm.SlurmLauncher(*arguments, settings.slurm_prologue)
    return made


def name_for(ranks: int, place: PlaceSpec | None = None) -> str:
    if place is not None:
        return slurm.NAME
    return torchrun.NAME if ranks > 1 else local.NAME
