"""nanochat import: resolves its parameters to a run, or lists the checkpoints found.

`listing` finds the checkpoints below a path; `consider` reads one checkpoint with its tokenizer and
describes the run it would become. Neither writes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.contract.jobs import (
    FoundCheckpoints,
    ImportListing,
    ImportParams,
    ImportPreview,
)
from trainer.contract.plan import CannotPlan, Plan, PlanContext, make_plan
from trainer.contract.spec import RunSpec, resolve
from trainer.data import token_bytes
from trainer.data import tokenizer as tokenizers
from trainer.interop import nanochat, nanochat_findings, nanochat_spec
from trainer.interop import nanochat_layout as layout
from trainer.interop.errors import InteropError
from trainer.interop.nanochat import NanochatRun, Options
from trainer.interop.nanochat_findings import Findings
from trainer.interop.nanochat_layout import NanochatFolder

UNNAMED = "imported"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that was read, and the run it would become.

    corpus: None if the built-in text replaces it. body: the spec as stored with the run.
    """

    run: NanochatRun
    tokenizer: Path
    corpus: Path | None
    body: dict[str, Any]
    spec: RunSpec
    plan: Plan
    findings: Findings

    @property
    def tokens(self) -> int:
        return self.run.step * self.plan.batch.tokens

    @property
    def measured_bpb(self) -> float | None:
        """val bpb of the pretraining stage; a chat stage measures other text."""
        return self.run.meta.val_bpb if self.run.found.stage == "base" else None


def listing(path: Path) -> ImportListing:
    """Every folder of checkpoints below `path`. Raises InteropError if there is none."""
    found = layout.find(path)
    if not found:
        raise InteropError(path, layout.NOTHING)
    return ImportListing(found=[_listed(one) for one in found])


def consider(params: ImportParams) -> Candidate:
    """Read the requested checkpoint. Raises InteropError, DataError."""
    root = Path(params.path).expanduser()
    found, saved = layout.choose(
        layout.find(root),
        root,
        tag=params.tag,
        experiment=params.experiment,
        stage=params.stage,
        step=params.step,
    )
    options = Options(params.muon, params.precision, params.weights_only)
    run = nanochat.read(found, saved.step, options)
    tokenizer = _tokenizer(found, params)
    corpus = _corpus(found, run, params)
    body = nanochat_spec.spec_from_run(
        run, name=params.name or UNNAMED, corpus=corpus, tokenizer=tokenizer
    )
    read = tokenizers.from_nanochat(tokenizer)
    if read.vocab_size != run.shape.vocab_size:
        raise InteropError(
            tokenizer / "tokenizer.pkl",
            f"has {read.vocab_size:,} tokens and the model {run.shape.vocab_size:,}: it is not "
            "the tokenizer of this model",
        )
    body["evaluate"]["token_bytes"] = token_bytes.read_kind(read, tokenizer) or "raw"
    spec, plan = _planned(run, body)
    findings = nanochat_findings.findings(run, body, corpus is not None)
    if body["evaluate"]["token_bytes"] == "decoded":
        findings.notes.append(
            "its token_bytes.pt is the table of before July 2026, by which val bpb reads about "
            "0.05 % lower; it is kept for val bpb (evaluate.token_bytes: decoded)"
        )
    return Candidate(run, tokenizer, corpus, body, spec, plan, findings)


def preview(candidate: Candidate) -> ImportPreview:
    """Preview of the run that an import would create."""
    run, plan, findings = candidate.run, candidate.plan, candidate.findings
    return ImportPreview(
        checkpoint=str(run.found.model(run.step)),
        generation=run.generation,
        recipe=plan.recipe.model,
        muon=run.muon,
        precision=run.precision,
        gpus=run.world,
        step=run.step,
        tokens=candidate.tokens,
        horizon_steps=plan.horizon.steps,
        parameters=plan.parameters.total,
        val_bpb=candidate.measured_bpb,
        corpus=str(candidate.corpus) if candidate.corpus else None,
        tokenizer=str(candidate.tokenizer),
        exact=findings.exact,
        inexact=findings.inexact,
        unknown=findings.unknown,
        notes=findings.notes,
        spec=candidate.body,
    )


def history(candidate: Candidate) -> dict[str, Any]:
    """Provenance of the imported run."""
    run, findings = candidate.run, candidate.findings
    return {
        "source": "nanochat",
        "generation": run.generation,
        "experiment": run.found.experiment,
        "tag": run.tag,
        "stage": run.found.stage,
        "step": run.step,
        "gpus": run.world,
        "muon": run.muon,
        "weights_only": run.optimizer is None,
        "inexact": findings.inexact,
        "unknown": findings.unknown,
        "notes": findings.notes,
        "meta": run.raw_meta,
    }


def _listed(found: NanochatFolder) -> FoundCheckpoints:
    complete = [s.step for s in found.saved if s.is_complete]
    dataset = layout.experiment_info(found).get("dataset")
    return FoundCheckpoints(
        path=str(found.folder),
        layout=found.layout,
        experiment=found.experiment,
        tag=found.tag,
        stage=found.stage,
        steps=complete,
        weights_only=[s.step for s in found.saved if s.has_model and not s.is_complete],
        dataset=dataset if isinstance(dataset, str) else None,
    )


def _tokenizer(found: NanochatFolder, params: ImportParams) -> Path:
    if params.tokenizer is not None:
        given = Path(params.tokenizer).expanduser()
        return given.parent if given.name == "tokenizer.pkl" else given
    place = layout.tokenizer_of(found)
    if place is None:
        raise InteropError(
            layout.tokenizer_candidates(found)[0] / "tokenizer.pkl",
            "is not there, nor in any other of nanochat's places: name its folder (tokenizer, "
            "--tokenizer)",
        )
    return place


def _corpus(found: NanochatFolder, run: NanochatRun, params: ImportParams) -> Path | None:
    if params.corpus is not None:
        return Path(params.corpus).expanduser()
    is_packed = nanochat_spec.is_packed(run.meta)
    place = layout.corpus_of(found, is_packed)
    if place is None and run.optimizer is not None:
        what = "packed shards (train_00000.bin)" if is_packed else "parquet files"
        raise InteropError(
            found.base or found.root,
            f"holds no folder with the {what} of this run: name it (corpus, --corpus)",
        )
    return place


def _planned(run: NanochatRun, body: dict[str, Any]) -> tuple[RunSpec, Plan]:
    try:
        spec = resolve(body)
        return spec, make_plan(spec, PlanContext(device_type="cpu"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InteropError(
            run.found.meta(run.step), f"gives no run: {where or 'spec'}: {first['msg']}"
        ) from None
    except CannotPlan as error:
        raise InteropError(run.found.meta(run.step), f"gives no run: {error}") from None
