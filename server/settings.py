"""Settings of the daemon: environment variables TRAIND_… or flags of `traind serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainer.contract.rundir import DataDir

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """Settings of the daemon. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(
        env_prefix="TRAIND_", extra="ignore", use_attribute_docstrings=True
    )

    data_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("traind")))
    """Directory of the database, runs, jobs and corpora."""
    host: str = "127.0.0.1"
    """Address the daemon listens on."""
    port: int = Field(default=8321, ge=0, le=65535)
    """TCP port; 0 picks a free one."""
    auth: Literal["auto", "always"] = "auto"
    """Where a token is required: auto (everywhere except on loopback) or always."""
    allow_hosts: list[str] = []
    """Additional host names accepted in the Host header."""
    allow_remote: bool = False
    """Allow listening on an address other than loopback."""
    token_file: Path | None = None
    """File with the access token; the default is `token` in the data directory."""
    trainer_python: str = sys.executable
    """Python interpreter that runs trainers and jobs."""
    stop_trainers: bool = False
    """Stop trainers with the daemon, after a checkpoint, instead of leaving them running."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    """Maximum size of a request body, in bytes."""
    tick_seconds: float = Field(default=0.25, gt=0, le=60)
    """Interval of the supervisor's passes, in seconds."""
    pause_deadline_seconds: float = Field(default=600.0, gt=0)
    """Time a trainer may take to save and exit before it is killed, in seconds."""
    stall_seconds: float = Field(default=600.0, gt=0)
    """Minimum silence, in seconds, before a run counts as stalled."""
    keep_jobs_days: float = Field(default=30.0, ge=1)
    """Retention of ended jobs, commands and unused corpora, in days."""
    token_cache_bytes: int = Field(default=200_000_000_000, ge=0)
    """Maximum total size of the token caches, in bytes."""
    log_format: Literal["text", "json"] = "text"
    """Format of log lines on stderr: text or json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log lines: debug, info, warning or error."""
    energy_price_per_kwh: float | None = Field(default=None, ge=0)
    """Price of a kilowatt-hour, in your currency; used for costs where no tariff is known."""
    slurm_prologue: Path | None = None
    """Shell file that every Slurm job sources before the trainer starts."""
    tariff: str | None = None
    """File or URL with prices over time, a JSON list of {start, end, price}."""

    @property
    def paths(self) -> DataDir:
        try:
            return DataDir(self.data_dir.expanduser().absolute())
        except RuntimeError:
            raise RuntimeError(
                f"could not determine the home directory that {self.data_dir} begins with"
            ) from None

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK
