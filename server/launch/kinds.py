"""The launchers there are, and which of them starts an order."""

from __future__ import annotations

import json
from pathlib import Path

from server.launch import local, torchrun
from server.launch.launcher import Launcher
from server.settings import Settings
from trainer.contract.orders import ORDER


def make(settings: Settings) -> dict[str, Launcher]:
    """One of each kind, by the name that the rows keep."""
    kinds = (local.Local, torchrun.Torchrun)
    arguments = (settings.trainer_python, settings.token_cache_bytes, settings.paths.compiled)
    return {kind.name: kind(*arguments) for kind in kinds}


def name_for(ranks: int) -> str:
    return torchrun.NAME if ranks > 1 else local.NAME


def ranks_ordered(directory: Path) -> int:
    """Ranks of what was ordered in a directory; one where nothing that can be read says so."""
    try:
        devices = json.loads((directory / ORDER).read_bytes()).get("devices") or ()
        return max(1, len(devices))
    except (OSError, ValueError, AttributeError, TypeError):
        return 1
