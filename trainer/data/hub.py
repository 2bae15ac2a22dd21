"""Data sets from the Hugging Face hub, downloaded by huggingface_hub."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import durable
from trainer.data import fingerprints, splits
from trainer.data.errors import DataError, reason
from trainer.data.prepared import DataFile, Remote

_HARD = {
    "GatedRepoError": (
        "dataset_gated",
        "the Hugging Face data set '{name}' is gated: ask for access at {page}, then log in with "
        "`hf auth login` or set HF_TOKEN for the daemon ({why})",
    ),
    "RepositoryNotFoundError": (
        "dataset_not_found",
        "the Hugging Face hub has no data set '{name}', or it is private or gated and needs a "
        "login with access to it ({why})",
    ),
    "RevisionNotFoundError": (
        "dataset_not_found",
        "the Hugging Face data set '{name}' no longer has the revision that this run uses ({why})",
    ),
}


@dataclass(frozen=True)
class Listing:
    """Contents of a data set: parquet files in name order, configs of its card, other kinds."""

    files: list[DataFile]
    card: list[dict[str, Any]] | None
    others: list[str]


def listed(name: str, corpora_dir: Path, revision: str | None = None) -> tuple[Listing, list[str]]:
    """The hub's listing of a data set, or offline the last one known, with notes."""
    memo = corpora_dir / "hub" / f"{name.replace('/', '--')}-{revision or 'newest'}.json"
    try:
        listing = list_shards(name, corpora_dir, revision)
    except DataError as error:
        remembered = _cached(memo) if error.code == "download_failed" else None
        if remembered is None:
            raise
        return remembered, [f"{error.message}; using its last known listing"]
    content = {
        "files": [_portable(file, corpora_dir) for file in listing.files],
        "card": listing.card,
        "others": listing.others,
    }
    durable.write_shared(memo, json.dumps(content, default=str).encode())
    return listing, []


def _portable(file: DataFile, corpora_dir: Path) -> dict[str, Any]:
    """JSON of a file with its path relative to the corpora folder, since the data may be moved."""
    path = Path(file.path)
    inside = path.is_relative_to(corpora_dir)
    return {**file.model_dump(), "path": str(path.relative_to(corpora_dir) if inside else path)}


def _placed(file: dict[str, Any], corpora_dir: Path) -> DataFile:
    path = Path(file["path"])
    if path.is_absolute():  # format of 0.1.0: the folder and the name within it
        path = Path(*path.parts[-2:])
    return DataFile.model_validate({**file, "path": str(corpora_dir / path)})


def _cached(memo: Path) -> Listing | None:
    try:
        content = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        return None
    if isinstance(content, list):  # as 0.1.0 wrote it
        content = {"files": content, "card": None, "others": []}
    corpora_dir = memo.parents[1]
    files = [_placed(file, corpora_dir) for file in content["files"]]
    return Listing(files, content["card"], content["others"])


def list_shards(name: str, corpora_dir: Path, revision: str | None = None) -> Listing:
    """List every parquet file of the data set in name order, without downloading any.

    The hub reports size and sha256 of each. Raises DataError.
    """
    try:
        import huggingface_hub

        api = huggingface_hub.HfApi(endpoint=_endpoint())
        info = api.dataset_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # httpx of whichever name, the system, the hub
        raise _unreachable(name, name, error) from error
    directory = corpora_dir / f"hf-{name.replace('/', '--')}-{(info.sha or 'none')[:12]}"
    siblings = info.siblings or []
    found = [
        _shard(name, info.sha or "main", sibling, directory)
        for sibling in siblings
        if sibling.rfilename.lower().endswith(".parquet")
    ]
    others = {Path(s.rfilename).suffix or s.rfilename for s in siblings} - {".parquet"}
    card = dict(info.card_data.to_dict()) if info.card_data else None
    files = sorted(found, key=lambda file: file.path)
    return Listing(files, splits.configs_of(card), sorted(others))


def fetch(file: DataFile, progress: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Download one shard, continuing where an earlier try stopped, and check its sha256.

    Calls `progress` repeatedly with the number of bytes received. Raises DataError.
    """
    assert file.remote is not None
    target = Path(file.path)
    staging = target.parent / ".fetching"
    try:
        import huggingface_hub

        got = huggingface_hub.hf_hub_download(
            file.remote.repo,
            file.remote.name,
            repo_type="dataset",
            revision=file.remote.revision,
            local_dir=staging,
            endpoint=_endpoint(),
            tqdm_class=_reporting(progress),
        )
    except Exception as error:  # errors of the downloader, of httpx, of the system
        raise _unreachable(file.remote.name, file.remote.repo, error) from error
    if file.sha256 and fingerprints.full(Path(got)) != file.sha256:
        Path(got).unlink(missing_ok=True)
        raise DataError(
            "download_damaged", f"{file.remote.name} did not arrive as the hub describes it", got
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.put_in_place(Path(got), target)


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
        """Progress bar replacement that reports the number of bytes received."""

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


def _unreachable(what: str, name: str, error: Exception) -> DataError:
    """The hub's full error message: a gated data set's page, an expired token."""
    message = str(getattr(error, "server_message", None) or "").strip()
    detail = reason(error)
    why = f"{message}; {detail}" if message and message not in detail else detail
    for kind in type(error).__mro__:
        if kind.__name__ in _HARD:
            code, sentence = _HARD[kind.__name__]
            page = f"https://huggingface.co/datasets/{name}"
            return DataError(code, sentence.format(name=name, page=page, why=why))
    cause = error.__cause__ or error.__context__
    if cause is not None and reason(cause) not in why:
        why = f"{why} ({reason(cause)})"
    return DataError("download_failed", f"cannot fetch '{what}' from the Hugging Face hub: {why}")
