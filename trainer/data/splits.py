"""Splits and configs: which files train, which validate, which are ignored.

Data sets name their splits in files (`train-00000-of-00002.parquet`, `wiki.test.tokens`) or folders
(`validation/0.jsonl`); a data set's card (README.md) may list them too. The words are those of the
Hugging Face `datasets` library. Splits named validation or test are never trained on. If more than
one choice is left, an error lists them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from trainer.contract.spec import DataSpec
from trainer.contract.splits import kind_of
from trainer.data.errors import DataError
from trainer.data.walk import FoundFile

LAST_VALIDATES = "files in name order, the last is validation"
BY_NAME = "splits by name: {train} trains, {validation} validates"
_SHARDED = re.compile(r"^(?P<split>.+?)-\d{3,}-of-\d{3,}\b")
_LISTED = 12  # names listed in an error
EVERY_CONFIG = "*"
MAX_CARD_CHARS = 1_000_000


@dataclass(frozen=True)
class Named:
    """A file's path, parsed. split: "" if it names none; folder: the path above it."""

    kind: Literal["train", "validation", "test"] | None
    split: str
    folder: str


@dataclass(frozen=True)
class SplitChoice:
    """Indices into the files. validation: empty if no name means it. rule: for people."""

    train: list[int]
    validation: list[int]
    left: list[int]
    notes: list[str]
    rule: str | None


def choose_found(found: FoundFile, spec: DataSpec) -> SplitChoice:
    """`choose` for local files, by the card beside them and the split of the spec."""
    return choose(
        [found.relative(path) for path in found.files],
        where=str(found.root),
        card=read_card(found.root),
        config=spec.config,
        split=spec.split,
    )


def choose(
    paths: Sequence[PurePosixPath],
    *,
    where: str,
    card: list[dict[str, Any]] | None = None,
    config: str | None = None,
    split: str | None = None,
    folders_are_configs: bool = False,
) -> SplitChoice:
    """Sort the files of a data set by split. Raises DataError if the names leave a choice.

    where: name of the data set, for messages. card: the `configs` of its README.md.
    folders_are_configs: folders without a split's name are configs, as on the hub.
    """
    named, notes = _of_config(paths, where, card, config, folders_are_configs)
    kinds = {index: name for index, name in named.items() if name.kind in ("validation", "test")}
    rest = {index: name for index, name in named.items() if index not in kinds}
    train = _training(rest, bool(kinds), where, split)
    if rest[train[0]].kind is None and len(train) > 1:
        # a test split beside files without a split's name is ignored: it may be of another data set
        kinds = {index: name for index, name in kinds.items() if name.kind == "validation"}
    validation, named = _validation(kinds, rest[train[0]].split)
    used = {*train, *validation}
    left = [index for index in range(len(paths)) if index not in used]
    rule = None
    if validation:
        rule = BY_NAME.format(train=rest[train[0]].split or "the rest", validation=named)
        if kinds[validation[0]].kind == "test":
            notes.append(f"{where} has no validation split: its test split is used for validation")
    return SplitChoice(train, validation, left, notes, rule)


def notes_on(path: Path) -> list[str]:
    """Notes on a path named by the user: it is used even if it is named test."""
    kind = kind_of(path.name)
    if kind not in ("validation", "test"):
        return []
    return [f"{path} is named {kind}, and is trained on because data.path names it"]


def named_by(path: PurePosixPath) -> Named:
    """The split that the names of a file and its folders mean; an evaluation's name takes
    precedence.
    """
    kinds = [kind_of(part) for part in path.parts]
    for wanted in ("test", "validation", "train"):
        if wanted in kinds:
            at = kinds.index(wanted)
            split = _sharded(path.parts[at]) or (
                wanted if at == len(kinds) - 1 else path.parts[at].lower()
            )
            return Named(wanted, split, "/".join(path.parts[:at]))
    return Named(None, _sharded(path.name) or "", "/".join(path.parts[:-1]))


def _sharded(name: str) -> str | None:
    found = _SHARDED.match(name)
    return found["split"].lower() if found else None


# --- configs -------------------------------------------------------------------------------------


def _of_config(
    paths: Sequence[PurePosixPath],
    where: str,
    card: list[dict[str, Any]] | None,
    config: str | None,
    folders_are_configs: bool,
) -> tuple[dict[int, Named], list[str]]:
    names = {index: named_by(path) for index, path in enumerate(paths)}
    if config == EVERY_CONFIG:
        return names, []
    if card:
        return _of_card(paths, names, where, card, config)
    if config is not None:
        return _below(paths, names, where, config), []
    whole = [name.folder for name in names.values() if name.kind == "train"]
    if folders_are_configs and not whole:
        whole = [name.folder for name in names.values() if name.kind is None]
    if len(set(whole)) > 1:
        raise _choice_needed(where, "config", sorted(set(whole)))
    return names, []


def _below(
    paths: Sequence[PurePosixPath], names: dict[int, Named], where: str, config: str
) -> dict[int, Named]:
    wanted = PurePosixPath(config).parts
    found = {i: name for i, name in names.items() if paths[i].parts[: len(wanted)] == wanted}
    if not found:
        folders = sorted({name.folder for name in names.values()})
        raise DataError(
            "config_not_found",
            f"{where} has no config '{config}'; it has {_listing(folders)}",
        )
    return found


def _of_card(
    paths: Sequence[PurePosixPath],
    names: dict[int, Named],
    where: str,
    card: list[dict[str, Any]],
    config: str | None,
) -> tuple[dict[int, Named], list[str]]:
    configs = {str(entry.get("config_name", "default")): entry for entry in card}
    notes = []
    if config is None:
        marked = [name for name, entry in configs.items() if entry.get("default") is True]
        default = marked[0] if marked else ("default" if "default" in configs else None)
        if default is None and len(configs) > 1:
            raise _choice_needed(where, "config", list(configs))
        config = default or next(iter(configs))
        if len(configs) > 1:
            notes.append(f"{where} has {len(configs)} configs: using its default, '{config}'")
    elif config not in configs:
        raise DataError(
            "config_not_found",
            f"{where} has no config '{config}'; it has {_listing(list(configs))}",
        )
    found: dict[int, Named] = {}
    for split, pattern in _patterns(configs[config]):
        for index, path in enumerate(paths):
            if pattern.fullmatch(path.as_posix()) and index not in found:
                found[index] = _as_listed(names[index], split)
    return (found or _below(paths, names, where, config)), notes


def _as_listed(name: Named, split: str | None) -> Named:
    """The card's split; the file's own name may only make it an evaluation split."""
    if split is None:
        return name
    kind = kind_of(split)
    if name.kind in ("validation", "test") and kind not in ("validation", "test"):
        return name
    return Named(kind, split.lower(), name.folder)


def _patterns(config: dict[str, Any]) -> list[tuple[str | None, re.Pattern[str]]]:
    """(split or None, pattern of paths) of a config's `data_files` and `data_dir`."""
    base = str(config.get("data_dir") or "").strip("/")
    listed = config.get("data_files")
    pairs: list[tuple[str | None, Any]] = []
    if isinstance(listed, dict):
        pairs = list(listed.items())
    elif isinstance(listed, list):
        for entry in listed:
            is_split = isinstance(entry, dict)
            pairs.append((entry.get("split"), entry.get("path")) if is_split else (None, entry))
    elif listed:
        pairs = [(None, listed)]
    elif base:
        pairs = [(None, "**")]
    found = []
    for split, paths in pairs:
        for path in paths if isinstance(paths, list) else [paths]:
            found.append((split and str(split), _glob(f"{base}/{path}" if base else str(path))))
    return found


def _glob(pattern: str) -> re.Pattern[str]:
    """Compile a glob: `**` any folders, `*` within one; a folder matches all below it."""
    pattern = pattern.removeprefix("./").strip("/")
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    body = "".join(words.get(piece) or re.escape(piece) for piece in pieces)
    return re.compile(f"{body}(?:/.*)?")


# --- splits --------------------------------------------------------------------------------------


def _training(
    rest: dict[int, Named], has_evaluation: bool, where: str, split: str | None
) -> list[int]:
    names = sorted({name.split for name in rest.values()})
    if split is not None:
        chosen = [i for i, name in rest.items() if split.lower() in (name.split, name.kind)]
        if not chosen:
            there = _listing([name or "files without a split's name" for name in names])
            raise DataError(
                "split_not_found",
                f"{where} has no split '{split}' to train on; besides validation and test it has "
                f"{there}",
            )
        return chosen
    if not rest:
        raise DataError(
            "no_training_files",
            f"every file of {where} is named validation or test, which is never trained on: "
            "rename the files or give another folder",
        )
    if has_evaluation and any(name.kind == "train" for name in rest.values()):
        # beside a complete set of splits a file without one is not part of the data set
        rest = {i: name for i, name in rest.items() if name.split}
        names = [name for name in names if name]
    if "train" in names:
        return [i for i, name in rest.items() if name.split in ("train", "")]
    if len(names) > 1:
        raise _choice_needed(where, "split", names)
    return list(rest)


def _validation(kinds: dict[int, Named], train: str) -> tuple[list[int], str]:
    """The validation split, else the test split; of several the one with `train`'s suffix."""
    for wanted in ("validation", "test"):
        found = {i: name.split for i, name in kinds.items() if name.kind == wanted}
        ending = re.sub(r"^train(ing)?", "", train)
        same = {i: split for i, split in found.items() if ending and split.endswith(ending)}
        if chosen := same or found:
            return list(chosen), ", ".join(sorted(set(chosen.values())))
    return [], ""


def _choice_needed(where: str, what: Literal["config", "split"], names: list[str]) -> DataError:
    plain = [name or "." for name in names]
    all_of_them = f", or {EVERY_CONFIG!r} for all of them" if what == "config" else ""
    return DataError(
        f"{what}_needed",
        f"{where} has {len(plain)} {what}s: name the one to train on as data.{what}{all_of_them} "
        f"({_listing(plain)})",
    )


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name or "." for name in names[:_LISTED]) + more


# --- a data set's card ---------------------------------------------------------------------------


def read_card(folder: Path) -> list[dict[str, Any]] | None:
    """The `configs` of README.md's YAML head, as a clone of a data set has them; None without."""
    import yaml

    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            content = file.read(MAX_CARD_CHARS)
    except OSError:
        return None
    head, body = content.partition("---\n")[::2]
    if head.strip() or "\n---" not in body:
        return None
    try:
        card = yaml.safe_load(body.partition("\n---")[0])
    except (yaml.YAMLError, RecursionError):
        return None
    return configs_of(card)


def configs_of(card: Any) -> list[dict[str, Any]] | None:
    """The entries of `configs` that name files; None if there are none."""
    configs = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(configs, list):
        return None
    named = [e for e in configs if isinstance(e, dict) and ("data_files" in e or "data_dir" in e)]
    return named or None
