"""The launchers there are, and which of them starts an order."""

from __future__ import annotations

from server.launch import local
from server.launch.launcher import Launcher
from server.settings import Settings


def make(settings: Settings) -> dict[str, Launcher]:
    """One of each kind, by the name that the rows keep."""
    here = local.Local(settings.trainer_python, settings.token_cache_bytes, settings.paths.compiled)
    return {here.name: here}
