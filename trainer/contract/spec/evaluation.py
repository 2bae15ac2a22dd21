"""Evaluations during training: val bpb, CORE and samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from trainer.contract.spec.fields import Steps, Strict, Text, Tokens


class EvaluateSpec(Strict):
    """Cadences in steps; None is off. CORE at the end of a phase: `core_every: "end"`.

    token_bytes: byte lengths of the tokens for val bpb. raw: the bytes of each token. decoded:
    those of its text, in which bytes that are not UTF-8 count 3 per replacement character, as
    nanochat counted before July 2026 (val bpb is about 0.05 % lower).
    """

    bpb_every: Steps | Literal["end"] | None = 250
    """Steps between evaluations of validation bits per byte; end is once per phase."""
    eval_tokens: Tokens = 41_943_040
    """Validation tokens per evaluation."""
    core_every: Steps | Literal["end"] | None = None
    """Steps between CORE evaluations; end is once per phase, null is never."""
    core_max_per_task: Annotated[int, Field(ge=1, le=1_000_000)] | None = 500
    """Maximum number of items per CORE task; null takes all."""
    core_bundle: Text | None = None
    """Folder of the CORE bundle; null finds the one fetched by `traind fetch core`."""
    sample_every: Steps | Literal["end"] | None = 2000
    """Steps between samples of `prompts`; end is once per phase, null is never."""
    prompts: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=2048)]],
        Field(max_length=32),
    ] = []  # noqa: RUF012 - pydantic copies defaults
    """Prompts continued at each sample."""
    recheck_bpb: Literal["auto", "always", "never"] = "auto"
    """When a resume measures val bpb again and compares it with the checkpoint's value."""
    token_bytes: Literal["raw", "decoded"] = "raw"
    """Byte table of val bpb: raw bytes, or decoded text as nanochat counted before July 2026."""
