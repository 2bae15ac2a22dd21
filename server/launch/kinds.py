"""The launchers there are, and which of them starts an order."""

from __future__ import annotations

from server.launch import local, torchrun
from server.launch.launcher import Launcher
from server.settings import Settings

# Kinds whose processes run on this machine, so that the pid of a report names one of them.
ON_THIS_MACHINE = frozenset({local.NAME, torchrun.NAME})


def make(settings: Settings) -> dict[str, Launcher]:
    """One of each kind, by the name that the rows keep."""
    kinds = (local.Local, torchrun.Torchrun)
    arguments = (settings.trainer_python, settings.token_cache_bytes, settings.paths.compiled)
    return {kind.name: kind(*arguments) for kind in kinds}


def name_for(ranks: int) -> str:
    return torchrun.NAME if ranks > 1 else local.NAME
