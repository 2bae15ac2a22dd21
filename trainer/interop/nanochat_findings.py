"""Findings of a nanochat import: what is exact, inexact, unknown, and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.interop import nanochat_traits as traits_of
from trainer.interop.nanochat import BETWEEN, NanochatRun

MARCH_HINT_RATIO = traits_of.OLD_RATIO
BUFFER = (
    "imported: nanochat does not save its packing buffer, so the data continues at the next "
    "row group with an empty one"
)
FP8 = "nanochat computed the matrix products in fp8; they continue in the compute dtype"
FRESH = (
    "imported without an optimizer: its moments start at zero, so an extension should warm up again"
)


@dataclass
class Findings:
    """Findings of an import, as sentences.

    exact, inexact: what continues as in nanochat's own resume, and what does not. unknown: what the
    files do not contain, each with the option that supplies it. notes: the rest.
    """

    exact: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def approximate(self) -> str | None:
        """Cause of an inexact first resume; None if it is exact."""
        return "; ".join(self.inexact) or None


def findings(run: NanochatRun, body: dict[str, Any], has_corpus: bool) -> Findings:
    """Findings of an import: exact parts, approximate parts, and parts the files lack."""
    found = Findings()
    if run.optimizer is None:
        found.inexact.append(FRESH)
    else:
        found.exact.append(_optimizer_words(run))
    _data_findings(run, found, has_corpus)
    if run.meta.user_config.fp8 and run.precision != "fp8":
        found.inexact.append(FP8)
    if run.generation == BETWEEN:
        found.notes.append(
            "the files combine traits of several generations, each read as it is: "
            f"{traits_of.against_each(run.traits)}"
        )
    _muon_findings(run, found)
    if run.precision == "auto":
        found.unknown.append(run.precision_shown)
    if groups := body["optimizer"].get("groups"):
        found.notes.append(
            "base learning rates, betas or decays of the optimizer file differ from the stored "
            f"flags and are kept: {', '.join(groups)}"
        )
    return found


def _data_findings(run: NanochatRun, found: Findings, has_corpus: bool) -> None:
    meta = run.meta
    if not has_corpus:
        found.notes.append(
            "no corpus was found: the built-in text replaces it for evaluations and extends; "
            "--corpus names another"
        )
    elif meta.dataloader_row is not None:
        found.exact.append(f"the data continues at row {meta.dataloader_row:,}, none left out")
    elif meta.dataloader_state_dict is not None:
        found.inexact.append(BUFFER)
        if run.world > 1:
            found.exact.append(
                f"the {run.world} data streams of its {run.world} GPUs are packed separately, as "
                "there, and a step takes the same number of rows from each"
            )
    else:
        found.inexact.append("imported without a data cursor: the data starts from the beginning")


def _optimizer_words(run: NanochatRun) -> str:
    gpus = f" merged from the shards of {run.world} GPUs" if run.world > 1 else ""
    return f"weights and optimizer state{gpus}, base rates, betas and decays"


def _muon_findings(run: NanochatRun, found: Findings) -> None:
    shown = run.traits.muon
    if run.optimizer is not None and shown is None:
        found.unknown.append(
            f"which Muon made it ({run.muon_shown}): {run.muon} is taken; --muon states another"
        )
    elif run.optimizer is None and run.traits.smear:
        found.unknown.append(
            f"weights alone do not show which Muon made them: an extension uses that of "
            f"{run.muon}; --muon states another"
        )
    elif shown is not None and not run.muon.startswith(shown):
        found.notes.append(f"Muon of {run.muon} as asked for, although {run.muon_shown}")
    if shown == "2026-03" and run.muon == "2026-03" and run.precision == "fp32":
        early = run.meta.user_config.target_param_data_ratio == MARCH_HINT_RATIO
        hint = " (its data:param ratio of 10.5 suggests March)" if early else ""
        found.unknown.append(
            "whether it was trained before 26 March 2026, when float32 runs orthogonalized in "
            f"bfloat16{hint}: if so, give --muon 2026-03-bf16"
        )
