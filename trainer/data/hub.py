"""Data sets by name from the Hugging Face hub, through huggingface_hub's own downloader."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.data import durable
from trainer.data.errors import DataError
from trainer.data.prepared import DataFile, Remote


def list_shards(name: str, corpora_dir: Path, revision: str | None = None) -> list[DataFile]:
    """Every parquet file of the data set in name order, none fetched.

    The hub tells size and sha256 of each. Raises DataError.
    """
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        api = huggingface_hub.HfApi(endpoint=_endpoint())
        info = api.dataset_info(name, revision=revision, files_metadata=True)
    except RepositoryNotFoundError:
        raise DataError(
            "dataset_not_found",
            f"the Hugging Face hub has no data set '{name}' (or it is private and needs a login)",
        ) from None
    except Exception as error:  # httpx of whichever name, the system, the hub
        raise _unreachable(name, error) from error
    directory = corpora_dir / f"hf-{name.replace('/', '--')}-{(info.sha or 'none')[:12]}"
    found = [
        _shard(name, info.sha or "main", sibling, directory)
        for sibling in info.siblings or []
        if sibling.rfilename.endswith(".parquet")
    ]
    return sorted(found, key=lambda file: file.path)


def fetch(file: DataFile, progress: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Download one shard, going on where an earlier try stopped, and check its sha256.

    `progress` gets the number of bytes that came, again and again. Raises DataError.
    """
    import huggingface_hub

    assert file.remote is not None
    target = Path(file.path)
    staging = target.parent / ".fetching"
    try:
        got = huggingface_hub.hf_hub_download(
            file.remote.repo,
            file.remote.name,
            repo_type="dataset",
            revision=file.remote.revision,
            local_dir=staging,
            endpoint=_endpoint(),
            tqdm_class=_reporting(progress),
        )
    except Exception as error:  # the downloader raises its own, httpx's and the system's errors
        raise _unreachable(file.remote.name, error) from error
    if file.sha256 and durable.sha256_of(Path(got)) != file.sha256:
        Path(got).unlink(missing_ok=True)
        raise DataError(
            "download_damaged", f"{file.remote.name} did not arrive as the hub describes it", got
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(got, target)
    durable.sync_directory(target.parent)


def _shard(name: str, revision: str, sibling: Any, directory: Path) -> DataFile:
    lfs = sibling.lfs
    sha256 = getattr(lfs, "sha256", None) or (lfs or {}).get("sha256") if lfs else ""
    return DataFile(
        path=str(directory / sibling.rfilename.replace("/", "--")),
        size=sibling.size or 0,
        sha256=sha256 or "",
        remote=Remote(repo=name, revision=revision, name=sibling.rfilename),
    )


def _reporting(progress: Callable[[int], None]) -> type:
    from tqdm import tqdm

    class Reporting(tqdm):
        """Says how many bytes have come instead of drawing a bar."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(
                *args, **{**kwargs, "disable": False, "file": io.StringIO(), "mininterval": 3600}
            )

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            progress(int(self.n))
            return drawn

    return Reporting


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _unreachable(name: str, error: Exception) -> DataError:
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError("download_failed", f"cannot fetch '{name}' from the Hugging Face hub: {why}")
