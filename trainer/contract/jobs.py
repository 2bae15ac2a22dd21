"""Parameters and results of each job kind.

A result is the `result` field of the job's `ended` record.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from trainer.contract.recipe import MuonName
from trainer.contract.spec import Name
from trainer.contract.strict_types import of_their_kind

TOKEN_SOCKET = "tokens.sock"  # in a sampling job's directory: {"prompt": index, "text": …} lines


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    _kinds = of_their_kind


PromptText = Annotated[str, StringConstraints(min_length=1, max_length=8192)]
Where = Literal["auto", "cpu", "inline", "device"]


class SampleParams(Params):
    """Sampling job.

    Result: {"samples": [{prompt, text, num_tokens, seconds}], "step": n, "checkpoint": name}."""

    step: Annotated[int, Field(ge=0)] | None = None
    checkpoint: str | None = Field(default=None, max_length=128)
    prompts: Annotated[list[PromptText], Field(min_length=1, max_length=32)]
    """Prompts to continue."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    where: Where = "auto"


class ServeParams(Params):
    """Serving job: completions on a socket (contract/completions.py) until idle for idle_seconds.

    report_seconds: interval of its heartbeat. Result: {"completions": n, "tokens": n}.
    """

    idle_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    report_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0


class EvaluateParams(Params):
    """Evaluation job. Reports its results as events.EvaluationResult records, one per kind."""

    step: Annotated[int, Field(ge=0)] | None = None
    checkpoint: str | None = Field(default=None, max_length=128)
    bpb: bool = True
    """Whether to evaluate validation bits per byte."""
    core: bool = False
    """Whether to evaluate CORE."""
    core_max_per_task: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of items per CORE task."""
    core_bundle: str | None = Field(default=None, max_length=4096)
    """Folder of the CORE bundle."""
    eval_tokens: Annotated[int, Field(ge=1)] | None = None
    """Validation tokens; null is the run's setting."""
    where: Where = "auto"


class ExportParams(Params):
    """Export job. Result: {"path": directory, "files": [...], "step": n, "notes": [...]}.

    nanochat exports the generation of the run's recipe; -v1 and -v2 name a generation, if the model
    can be expressed in it.
    """

    format: Literal["nanochat", "nanochat-v1", "nanochat-v2", "huggingface"] = "nanochat"
    """Format of the files."""
    step: Annotated[int, Field(ge=0)] | None = None
    checkpoint: str | None = Field(default=None, max_length=128)


FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
FolderPath = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class ImportParams(Params):
    """Import a nanochat checkpoint as a managed run with a finished phase.

    path: nanochat's base directory, or any folder in it down to the checkpoint's own. Without a
    name the result lists the checkpoints below it (ImportListing); with dry_run no run is created
    and the result describes the run it would be (ImportPreview).
    experiment, tag, stage, step: select the checkpoint; step defaults to the newest, the others to
    the only one. corpus, tokenizer: folders, if not in nanochat's own places.
    weights_only: without the optimizer. muon, precision: needed if the files do not record them.
    """

    format: Literal["nanochat"] = "nanochat"
    """Program that wrote the checkpoint."""
    path: FolderPath
    """Absolute path on the daemon's machine: nanochat's base directory, or any folder below it."""
    tag: FolderName | None = None
    """Model tag, such as d12; null if there is only one below the path."""
    experiment: FolderName | None = None
    """Experiment below experiments/; null if only one matches."""
    stage: FolderName | None = None
    """Training stage: base, chat, sft, mid or rl; null prefers base."""
    step: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """Step of the checkpoint; null is the newest complete one."""
    name: Name | None = None
    """Name of the new run; null lists the checkpoints below the path and creates no run."""
    corpus: FolderPath | None = None
    """Absolute path of the parquet files or packed shards, if not in nanochat's own place."""
    tokenizer: FolderPath | None = None
    """Absolute path of the folder with tokenizer.pkl, if not in nanochat's own place."""
    weights_only: bool = False
    """Import without the optimizer state: an extension starts with zero moments."""
    muon: MuonName | None = None
    """Muon variant to continue with; null detects it from the second moments."""
    precision: Literal["auto", "bf16", "fp32", "fp16", "fp8"] | None = None
    """Precision to continue in; null detects it from the files."""
    dry_run: bool = False
    """Read the checkpoint and describe the run it would become, without creating it."""

    @property
    def makes_a_run(self) -> bool:
        return self.name is not None and not self.dry_run


class FoundCheckpoints(Params):
    """A folder of checkpoints. steps: the complete ones; weights_only: the others."""

    path: str
    layout: str
    experiment: str | None
    tag: str
    stage: str
    steps: list[int]
    weights_only: list[int]
    dataset: str | None


class ImportListing(Params):
    """The checkpoints below a path, if the parameters name none of them."""

    found: list[FoundCheckpoints]


class ImportPreview(Params):
    """Preview of an import. generation: nanochat's, by its traits. gpus: number it trained on.

    exact, inexact: what would continue as in nanochat's own resume, and what would not. unknown:
    what the files do not record, with the option that supplies it. spec: body of the run.
    """

    checkpoint: str
    generation: str
    recipe: str
    muon: str
    precision: str
    gpus: int
    step: int
    tokens: int
    horizon_steps: int
    parameters: int
    val_bpb: float | None
    corpus: str | None
    tokenizer: str
    exact: list[str]
    inexact: list[str]
    unknown: list[str]
    notes: list[str]
    spec: dict[str, Any]


class ImportAnswer(Params):
    """Result of an import that created no run: a listing or a preview."""

    listing: ImportListing | None = None
    preview: ImportPreview | None = None


class ImportedCheckpoint(Params):
    """The checkpoint as written into the new run's directory (attempt 0), durable and verified."""

    name: str
    step: int
    bytes: int
    manifest_sha256: str


class ImportResult(Params):
    """Result of an import: a complete spec body, and the model after `step` steps.

    history: the source's own metadata, shown with the run. bpb_identity: that of val_bpb, if the
    source measures as traind does (see events.EvaluationResult); bpb_settings: its settings.
    """

    spec: dict[str, Any]
    step: Annotated[int, Field(ge=0, le=10**9)]
    tokens: Annotated[int, Field(ge=0)]
    val_bpb: float | None = None
    bpb_identity: str | None = None
    bpb_settings: dict[str, Any] = {}
    checkpoint: ImportedCheckpoint
    history: dict[str, Any] = {}


class AuditParams(Params):
    """Audit job: repeat steps from a checkpoint and compare loss bits. Result: AuditResult."""

    step: Annotated[int, Field(ge=0)] | None = None
    checkpoint: str | None = Field(default=None, max_length=128)
    steps: Annotated[int, Field(ge=1, le=1000)] = 5
    """Number of recorded steps to repeat."""


class LossDifference(Params):
    step: int
    recorded: float
    found: float


class AuditResult(Params):
    """Result of an audit. why: differences from the original environment, one clause each."""

    verdict: Literal["verified", "mismatch", "approximate", "nothing recorded"]
    checkpoint: str
    compared: int
    differences: list[LossDifference] = []
    why: list[str] = []

    @property
    def sentence(self) -> str:
        """The audit's verdict in one sentence for people."""
        again = f"{self.compared:,} steps from {self.checkpoint} were repeated"
        first = self.differences[0] if self.differences else None
        match self.verdict:
            case "verified":
                return f"verified: {again}, and every loss has the same bits."
            case "mismatch" if first is not None:
                return (
                    f"MISMATCH: {again}; step {first.step:,} had the loss {first.recorded!r} and "
                    f"has {first.found!r} now. Memory, disk or processor changed bits: test the "
                    "memory, and trust no checkpoint after that step."
                )
            case "nothing recorded":
                return f"nothing to compare: no loss is recorded after {self.checkpoint}."
        return f"{again}, but not as they were made ({'; '.join(self.why)}): bits prove nothing."
