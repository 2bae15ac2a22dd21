"""A nanochat run made by the reference alone: trained, written, resumed.

It covers what the fixture does not: windows, odd head counts, grouped queries, padding. The files
have nanochat's names, numbering and contents (docs/nanochat.md), and are not written by traind's
code.
"""

from __future__ import annotations

import argparse
import ast
import calendar
import csv
import datetime
import inspect
import json
import math
import pickle
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import torch
from torch import Tensor

from tests.reference import scaling
from tests.reference.model import PlainGPT
from tests.reference.optimizer import PlainOptimizer
from tests.reference.packing import document_batches, packed_rows
from tests.reference.scaling import Dials
from tests.reference.step import train_step

TEXT = (argparse, ast, calendar, csv, datetime, inspect, random, textwrap)
MICRO_BATCHES = 2
EVAL_ROWS, EVAL_EVERY = 8, 100
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL = [
    f"<|{name}|>"
    for name in (
        "bos", "user_start", "user_end", "assistant_start", "assistant_end",
        "python_start", "python_end", "output_start", "output_end",
    )
]  # fmt: skip
ADAM_KEYS = ("exp_avg", "exp_avg_sq")
MUON_KEYS = ("momentum_buffer", "second_momentum_buffer")
Cursor = tuple[int, int, int]


class PlainRun:
    """A model of `dials` on the corpus and tokenizer in `base` (see `make_base`)."""

    def __init__(self, base: Path, dials: Dials, rows: int = 2, seed: int = 0) -> None:
        self.base, self.dials, self.rows = base, dials, rows
        self.batch_tokens = rows * dials.sequence_len * MICRO_BATCHES
        self.hyper = dials.hyperparameters(self.batch_tokens)
        self.encoding = load_encoding(self.tokenizer_folder)
        self.model = PlainGPT(dials.shape())
        _initialize(self.model, seed)
        self.optimizer = PlainOptimizer(self.model, self.hyper)
        self.step = 0
        self._batches = self._training()
        self._ahead = next(self._batches)

    @property
    def tokenizer_folder(self) -> Path:
        return self.base / "tokenizer"

    @property
    def cursor(self) -> Cursor:
        """(shard, row group, epoch) of the prefetched batch, which nanochat saves."""
        return self._ahead[1]

    def train(self, to_step: int, horizon: int) -> dict[int, float]:
        """{step: mean loss} of the steps up to `to_step`, scheduled for `horizon`."""
        losses = {}
        for step in range(self.step, to_step):
            taken = []
            for _ in range(MICRO_BATCHES):
                taken.append(self._ahead[0])
                self._ahead = next(self._batches)
            lr, momentum, decay = scaling.schedule(step, horizon, self.hyper.weight_decay)
            losses[step] = train_step(
                self.model, self.optimizer, taken,
                lr_multiplier=lr, momentum=momentum, weight_decay=decay,
            )  # fmt: skip
        self.step = to_step
        return losses

    def resume(self) -> None:
        """Resume as nanochat does: at the row group after the cursor's, with an empty buffer."""
        shard, group, epoch = self.cursor
        self._batches = self._rows(_shards(self.base)[:-1], shard, group + 1, epoch)
        self._ahead = next(self._batches)

    @torch.no_grad()
    def bits_per_byte(self) -> float:
        lengths = torch.tensor(token_lengths(self.encoding))
        nats, num_bytes = 0.0, 0
        batches = self._validation()
        for _ in range(EVAL_ROWS // self.rows):
            (tokens, targets), _ = next(batches)
            bytes_N = lengths[targets.reshape(-1)]
            losses_N = self.model.loss(tokens, targets, "none")
            nats += losses_N[bytes_N > 0].sum().item()
            num_bytes += int(bytes_N.sum())
        return nats / (math.log(2) * num_bytes)

    @torch.no_grad()
    def greedy(self, prompt: str, count: int) -> str:
        ids = [self.encoding.encode_single_token("<|bos|>"), *self.encoding.encode_ordinary(prompt)]
        bos, drawn = ids[0], []
        while len(drawn) < count:
            best = int(self.model(torch.tensor([ids + drawn]))[0, -1].argmax())
            if best == bos:  # another document
                break
            drawn.append(best)
        return self.encoding.decode(drawn)

    def write(self, tag: str, *, horizon: int, prefix: str = "") -> None:
        """Write the checkpoint of the current step."""
        folder = self.base / "base_checkpoints" / tag
        folder.mkdir(parents=True, exist_ok=True)
        model = {f"{prefix}{n}": t.clone() for n, t in self.model.state_dict().items()}
        torch.save(model, folder / f"model_{self.step:06d}.pt")
        torch.save(self.optimizer_state(), folder / f"optim_{self.step:06d}_rank0.pt")
        meta = json.dumps(self._meta(horizon), indent=2)
        (folder / f"meta_{self.step:06d}.json").write_text(meta)

    def optimizer_state(self) -> dict[str, Any]:
        """Parameters numbered 0, 1, 2, ... through AdamW's groups, then Muon's."""
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        number = 0
        for names in self._adam_names():
            numbers = list(range(number, number + len(names)))
            for n, name in zip(numbers, names, strict=True):
                moments = dict(zip(ADAM_KEYS, _clones(self.optimizer.state[name]), strict=True))
                state[n] = {"step": self.optimizer.count, **moments}
            groups.append({"kind": "adamw", "lr": 0.0, "params": numbers})
            number += len(names)
        for size, names in sorted(self.optimizer.muon_groups.items()):
            numbers = list(range(number, number + len(names)))
            state[number] = dict(zip(MUON_KEYS, _clones(self.optimizer.state[size]), strict=True))
            groups.append({"kind": "muon", "lr": 0.0, "params": numbers})
            number += len(names)
        return {"state": state, "param_groups": groups}

    def _training(self) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
        return self._rows(_shards(self.base)[:-1])

    def _validation(self) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
        return self._rows(_shards(self.base)[-1:])

    def _adam_names(self) -> list[list[str]]:
        tables = [f"value_embeds.{i}.weight" for i in range(self.dials.depth)]
        there = dict(self.model.named_parameters())
        return [
            ["lm_head.weight"],
            ["transformer.wte.weight"],
            [name for name in tables if name in there],
            ["resid_lambdas"],
            ["x0_lambdas"],
            [n for n in ("smear_gate.weight", "smear_lambda", "backout_lambda") if n in there],
        ]

    def _meta(self, horizon: int) -> dict[str, Any]:
        d, (shard, group, epoch) = self.dials, self.cursor
        bpb = self.bits_per_byte()
        return {
            "step": self.step,
            "val_bpb": bpb,
            "model_config": {
                "sequence_len": d.sequence_len, "vocab_size": d.vocab_size, "n_layer": d.depth,
                "n_head": d.n_head, "n_kv_head": d.n_kv_head or d.n_head, "n_embd": d.n_embd,
                "window_pattern": d.window_pattern,
            },
            "user_config": {
                "run": "dummy", "depth": d.depth, "aspect_ratio": d.aspect_ratio,
                "head_dim": d.head_dim, "max_seq_len": d.sequence_len,
                "window_pattern": d.window_pattern, "num_iterations": horizon,
                "target_flops": -1.0, "target_param_data_ratio": -1,
                "device_batch_size": self.rows, "total_batch_size": -1,
                **scaling.OPTIMIZER, "warmup_steps": scaling.WARMUP,
                "warmdown_ratio": scaling.WARMDOWN, "final_lr_frac": scaling.FINAL,
                "eval_every": EVAL_EVERY, "eval_tokens": EVAL_ROWS * d.sequence_len,
                "core_metric_every": -1, "core_metric_max_per_task": -1,
                "sample_every": -1, "save_every": -1,
            },
            "device_batch_size": self.rows,
            "max_seq_len": d.sequence_len,
            "total_batch_size": self.batch_tokens,
            "dataloader_state_dict": {"pq_idx": shard, "rg_idx": group, "epoch": epoch},
            "loop_state": {
                "min_val_bpb": bpb, "smooth_train_loss": 3.0, "total_training_time": 1.0,
            },
        }  # fmt: skip

    def _rows(
        self, shards: list[Path], shard: int = 0, group: int = 0, epoch: int = 1
    ) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
        bos = self.encoding.encode_single_token("<|bos|>")

        def encode(texts: list[str]) -> list[list[int]]:
            return [[bos, *self.encoding.encode_ordinary(text)] for text in texts]

        length = self.dials.sequence_len
        rows = packed_rows(document_batches(shards, shard, group, epoch), encode, length + 1)
        while True:
            taken = [next(rows) for _ in range(self.rows)]
            block = torch.tensor([row for row, _ in taken])
            yield (block[:, :-1].contiguous(), block[:, 1:].contiguous()), taken[-1][1]


def load_encoding(folder: Path) -> tiktoken.Encoding:
    return pickle.loads((folder / "tokenizer.pkl").read_bytes())  # noqa: S301


def make_base(base: Path, vocab_size: int) -> Path:
    """Make a tokenizer, two training shards and a validation shard of the library's own text."""
    source = "\n".join(inspect.getsource(module) for module in TEXT)
    documents = [part.strip() for part in source.split("\n\n") if part.strip()][:1500]
    shards, third = base / "base_data_climbmix", len(documents) // 3
    shards.mkdir(parents=True)
    for number in range(3):
        table = pa.table({"text": documents[number * third : (number + 1) * third]})
        pq.write_table(table, shards / f"shard_{number:05d}.parquet", row_group_size=60)
    _write_tokenizer(base / "tokenizer", documents, vocab_size)
    return base


def _write_tokenizer(folder: Path, texts: list[str], vocab_size: int) -> None:
    import rustbpe

    trained = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    trained.train_from_iterator(iter(texts), vocab_size - len(SPECIAL), pattern=PATTERN)
    ranks = {bytes(token): rank for token, rank in trained.get_mergeable_ranks()}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL)}
    encoding = tiktoken.Encoding(
        name="rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    assert encoding.n_vocab == vocab_size
    folder.mkdir()
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    lengths = torch.tensor(token_lengths(encoding), dtype=torch.int32)
    torch.save(lengths, folder / "token_bytes.pt")


def token_lengths(encoding: tiktoken.Encoding) -> list[int]:
    """Bytes of each token, 0 for special ones."""
    special = {encoding.encode_single_token(name) for name in SPECIAL}
    return [
        0 if token in special else len(encoding.decode_single_token_bytes(token))
        for token in range(encoding.n_vocab)
    ]


@torch.no_grad()
def _initialize(model: PlainGPT, seed: int) -> None:
    """Initialize without the recipe's zeros, from which no two implementations agree."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            scale = 0.02 if parameter.size(0) > 64 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    layer = torch.arange(model.shape.n_layer) / max(1, model.shape.n_layer - 1)
    model.resid_lambdas.copy_(1.15 - 0.10 * layer)
    model.x0_lambdas.copy_(0.20 - 0.15 * layer)


def _shards(base: Path) -> list[Path]:
    return sorted((base / "base_data_climbmix").glob("*.parquet"))


def _clones(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors[0].clone(), tensors[1].clone()
