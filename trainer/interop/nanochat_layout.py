"""Locates nanochat checkpoints below a folder: layouts, tags, experiments, steps.

Three layouts are known: `base_checkpoints/TAG/` (and other `…_checkpoints/`), `experiments/NAME/`
with `TAG/STAGE/` below it and `datasets/` beside it, and a single folder of files, as for shared
models. This module reads only names and small JSON files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.interop.errors import InteropError

FolderLayout = Literal["base_checkpoints", "experiments", "folder"]
STAGES = ("base", "mid", "sft", "chat", "rl")
FILE = re.compile(r"(model|meta)_(\d{6,9})\.(pt|json)")
SHARD_FILE = re.compile(r"optim_(\d{6,9})_rank(\d{1,4})\.pt")  # a folder may also be named …_rank1
DEFAULT_DATASET = "climbmix"
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NOTHING = (
    "holds no nanochat checkpoint: no model_NNNNNN.pt anywhere below (links that lead out of it "
    "are not followed: name the folder they lead to)"
)
MAX_DEPTH = 5
MAX_ENTRIES = 50_000
MAX_JSON_BYTES = 1_000_000


@dataclass(frozen=True)
class NanochatStep:
    """One step in a folder. ranks: ranks of the existing optimizer files, in order."""

    step: int
    ranks: tuple[int, ...]
    has_model: bool
    has_meta: bool

    @property
    def is_complete(self) -> bool:
        return bool(self.ranks) and self.has_model and self.has_meta


@dataclass(frozen=True)
class NanochatFolder:
    """A folder of checkpoints. root: the user's path. base: NANOCHAT_BASE_DIR, if known."""

    root: Path
    folder: Path
    layout: FolderLayout
    tag: str
    stage: str
    experiment: str | None
    base: Path | None
    saved: tuple[NanochatStep, ...]

    @property
    def newest(self) -> NanochatStep:
        """The newest complete step; the newest of all if none is complete."""
        complete = [s for s in self.saved if s.is_complete]
        return (complete or self.saved)[-1]

    def describe(self) -> str:
        """Name for people: 'first_ladder/d4', or 'd4 (chat)'."""
        name = f"{self.experiment}/{self.tag}" if self.experiment else self.tag
        return name if self.stage == "base" else f"{name} ({self.stage})"

    def model(self, step: int) -> Path:
        return self.folder / f"model_{step:06d}.pt"

    def meta(self, step: int) -> Path:
        return self.folder / f"meta_{step:06d}.json"

    def shard(self, step: int, rank: int) -> Path:
        return self.folder / f"optim_{step:06d}_rank{rank}.pt"

    @property
    def training_log(self) -> Path:
        """v2's training log, beside the stage's folder."""
        return self.folder.parent / "base_train.log"


def folder_of(base: Path, tag: str, experiment: str | None = None) -> Path:
    """The folder of a model's pretraining stage: v1's, or v2's below its experiment."""
    if experiment is None:
        return base / "base_checkpoints" / tag
    return base / "experiments" / experiment / tag / "base"


def find(root: Path | str) -> list[NanochatFolder]:
    """Every folder with checkpoints below `root`, in order of name. Raises InteropError."""
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise InteropError(root, "is not a readable folder")
    folders = [_described(root, folder, saved) for folder, saved in _folders(root)]
    return sorted(folders, key=lambda found: str(found.folder))


def choose(
    found: list[NanochatFolder],
    root: Path | str,
    *,
    tag: str | None = None,
    experiment: str | None = None,
    stage: str | None = None,
    step: int | None = None,
) -> tuple[NanochatFolder, NanochatStep]:
    """Select the one matching checkpoint; the newest step if none is named.

    Raises InteropError, which lists the checkpoints, if none or several match.
    """
    if not found:
        raise InteropError(root, NOTHING)
    fitting = [
        f
        for f in found
        if tag in (None, f.tag)
        and experiment in (None, f.experiment)
        and (f.stage == stage if stage else True)
        and (step is None or any(s.step == step for s in f.saved))
    ]
    if len(fitting) > 1 and stage is None:  # then the pretrained model, in its own place
        fitting = [f for f in fitting if f.stage == "base"] or fitting
        fitting = [f for f in fitting if f.layout != "folder"] or fitting
    if len(fitting) != 1:
        asked = {"tag": tag, "experiment": experiment, "stage": stage, "step": step}
        given = [f"{k} {v!r}" for k, v in asked.items() if v is not None]
        names = ", ".join(given) or "nothing named"
        what = "holds no checkpoint such as" if not fitting else "holds several checkpoints for"
        raise InteropError(root, f"{what} {names}: there is {listing(fitting or found)}")
    (chosen,) = fitting
    saved = chosen.newest if step is None else next(s for s in chosen.saved if s.step == step)
    return chosen, saved


def listing(found: list[NanochatFolder], most: int = 8) -> str:
    """The checkpoints of a folder in one line."""
    each = [f"{f.describe()} at {', '.join(f'{s.step:,}' for s in f.saved[-4:])}" for f in found]
    more = f" and {len(each) - most} more" if len(each) > most else ""
    return "; ".join(each[:most]) + more


def tokenizer_candidates(found: NanochatFolder) -> list[Path]:
    """Candidate paths of a checkpoint's tokenizer, the likeliest first."""
    places = [found.folder / "tokenizer", found.folder]
    if found.layout == "experiments":
        experiment = found.folder.parent.parent
        places.append(experiment / "tokenizer")
        places += [d / "tokenizer" for d in dataset_candidates(found)]
    if found.base is not None:
        places.append(found.base / "tokenizer")
    else:
        places.append(found.folder.parent / "tokenizer")
    return places


def tokenizer_of(found: NanochatFolder) -> Path | None:
    """The folder with tokenizer.pkl; None if there is none."""
    for place in tokenizer_candidates(found):
        if (place / "tokenizer.pkl").is_file():
            return place
    return None


def corpus_of(found: NanochatFolder, packed: bool) -> Path | None:
    """The folder with the text, or with the rows packed from it; None if there is none."""
    suffix = ".bin" if packed else ".parquet"
    candidates = dataset_candidates(found)
    if found.base is not None:
        candidates.append(found.base / "base_data_climbmix")
        candidates += sorted(found.base.glob("base_data*"))
    return next((c for c in candidates if _holds(c, suffix)), None)


def dataset_candidates(found: NanochatFolder) -> list[Path]:
    """Folders below `datasets/`: the one that the experiment names, else the default, else all."""
    if found.base is None:
        return []
    datasets = found.base / "datasets"
    named = experiment_info(found).get("dataset")
    if isinstance(named, str) and DATASET.fullmatch(named):
        return [datasets / named]
    others = sorted(d for d in datasets.glob("*") if d.is_dir()) if datasets.is_dir() else []
    return [datasets / DEFAULT_DATASET, *others]


def experiment_info(found: NanochatFolder) -> dict[str, object]:
    """meta.json of the experiment: name, created, git commit, data set; empty without one."""
    if found.layout != "experiments":
        return {}
    path = found.folder.parent.parent / "meta.json"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# --- walking -------------------------------------------------------------------------------------


def _folders(root: Path) -> Iterator[tuple[Path, tuple[NanochatStep, ...]]]:
    """(folder, what is saved in it), without following links out of `root`."""
    waiting, seen = [(root, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError:
            continue
        seen += len(entries)
        if seen > MAX_ENTRIES:
            raise InteropError(
                root, f"holds more than {MAX_ENTRIES:,} files: name the folder of the run itself"
            )
        saved = _saved([entry.name for entry in entries])
        if saved:
            yield folder, saved
        if depth < MAX_DEPTH:
            waiting += [
                (Path(entry.path), depth + 1)
                for entry in entries
                if not entry.name.startswith(".") and _is_inside(entry, root)
            ]


def _is_inside(entry: os.DirEntry[str], root: Path) -> bool:
    try:
        if not entry.is_dir():
            return False
        return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _saved(names: list[str]) -> tuple[NanochatStep, ...]:
    ranks: dict[int, set[int]] = {}
    for name in names:
        if shard := SHARD_FILE.fullmatch(name):
            ranks.setdefault(int(shard[1]), set()).add(int(shard[2]))
    there = set(names)
    steps = {int(m[2]) for name in names if (m := FILE.fullmatch(name))} | set(ranks)
    return tuple(
        NanochatStep(
            step,
            tuple(sorted(ranks.get(step, ()))),
            f"model_{step:06d}.pt" in there,
            f"meta_{step:06d}.json" in there,
        )
        for step in sorted(steps)
    )


def _described(root: Path, folder: Path, saved: tuple[NanochatStep, ...]) -> NanochatFolder:
    parent, above = folder.parent, folder.parent.parent
    if parent.name.endswith("_checkpoints"):
        stage = parent.name.removesuffix("_checkpoints")
        return NanochatFolder(
            root, folder, "base_checkpoints", folder.name, stage, None, above, saved
        )
    if folder.name in STAGES and above.name:
        experiments = above.parent
        base = experiments.parent if experiments.name == "experiments" else None
        return NanochatFolder(
            root, folder, "experiments", parent.name, folder.name, above.name, base, saved
        )
    return NanochatFolder(root, folder, "folder", folder.name, "base", None, None, saved)


def _holds(folder: Path, suffix: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(suffix) for entry in entries)
    except OSError:
        return False
