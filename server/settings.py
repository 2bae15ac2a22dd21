"""Settings: TRAIND_… in the environment, or a flag of `traind serve`."""

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
    """Everything that can be set about the daemon. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="TRAIND_", extra="ignore")

    data_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("traind")))
    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65535)
    auth: Literal["auto", "always"] = "auto"
    allow_hosts: list[str] = []
    allow_remote: bool = False
    token_file: Path | None = None
    trainer_python: str = sys.executable
    stop_trainers: bool = False
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    tick_seconds: float = Field(default=0.25, gt=0, le=60)
    pause_deadline_seconds: float = Field(default=600.0, gt=0)
    stall_seconds: float = Field(default=600.0, gt=0)
    token_cache_bytes: int = Field(default=200 << 30, ge=0)
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    energy_price_per_kwh: float | None = Field(default=None, ge=0)

    @property
    def paths(self) -> DataDir:
        return DataDir(self.data_dir.expanduser().absolute())

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK
