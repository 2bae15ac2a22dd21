"""A nanochat v2 run made by the reference alone.

It covers what the fixtures do not: windows shorter than the rows, odd head counts, grouped queries,
padding, rows longer than the model's context, a subset of the shards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.reference.nanochat_packing import read_rows, write_shards
from tests.reference.nanochat_run import Cursor, PlainRun, load_encoding, make_base
from tests.reference.optimizer import _adamw_rates
from tests.reference.scaling import Dials

DATA = Path("datasets") / "stdlib"
EXPERIMENT = "tried"


class PlainV2Run(PlainRun):
    """As PlainRun, on packed rows. num_shards: train shards used, -1 for all."""

    def __init__(self, base: Path, dials: Dials, num_shards: int = -1, **options: Any) -> None:
        self.num_shards = num_shards
        super().__init__(base, dials, **options)

    def resume(self) -> None:
        """Resume at exactly the prefetched batch: nothing is lost."""
        self._batches = self._training(self.cursor[0])
        self._ahead = next(self._batches)

    def write(self, tag: str, *, horizon: int, prefix: str = "") -> None:
        folder = self.base / "experiments" / EXPERIMENT / tag / "base"
        folder.mkdir(parents=True, exist_ok=True)
        about = {"name": EXPERIMENT, "dataset": "stdlib"}
        (folder.parents[1] / "meta.json").write_text(json.dumps(about))
        torch.save(self._model(), folder / f"model_{self.step:06d}.pt")
        state = self.optimizer_state() | {"world_size": 1}
        torch.save(state, folder / f"optim_{self.step:06d}_rank0.pt")
        meta = json.dumps(self._meta(horizon), indent=2)
        (folder / f"meta_{self.step:06d}.json").write_text(meta)
        log = f"COMPUTE_DTYPE: {self.model.compute_dtype} (on purpose)\n"
        (folder.parent / "base_train.log").write_text(log)

    @property
    def tokenizer_folder(self) -> Path:
        return self.base / DATA / "tokenizer"

    def _training(self, row: int = 0) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
        shards = sorted((self.base / DATA).glob("train_*.bin"))
        chosen = shards[: self.num_shards] if self.num_shards > 0 else shards
        return self._packed(chosen, row)

    def _validation(self) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
        return self._packed(sorted((self.base / DATA).glob("val_*.bin")), 0)

    def _packed(
        self, shards: list[Path], row: int
    ) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
        """Batches from `row` on, each with the row it began at; the cursor is of that batch."""
        rows, length = torch.from_numpy(read_rows(shards)), self.dials.sequence_len
        while True:
            taken = torch.arange(row, row + self.rows) % rows.size(1)
            inputs, targets = rows[:, taken, :length].contiguous()
            yield (inputs, targets), (row, 0, 0)
            row += self.rows

    def _model(self) -> dict[str, Tensor]:
        """State in v2's order: tables, layers, lambdas, value embeddings, all gates last."""
        state = self.model.state_dict()
        layers = [n for n in state if n.startswith("transformer.h.")]
        gates = [n for n in layers if "ve_gate" in n]
        values = [n for n in state if n.startswith("value_embeds.")]
        lambdas = ["resid_lambdas", "x0_lambdas", "backout_lambda"]
        first = ["transformer.wte.weight", "lm_head.weight", *(n for n in layers if n not in gates)]
        return {name: state[name].clone() for name in [*first, *lambdas, *values, *gates]}

    def optimizer_state(self) -> dict[str, Any]:
        """Optimizer state with the base rates, betas and decays that v2 keeps in its groups."""
        content = super().optimizer_state()
        names = [group[0] for group in self._adam_names()]
        for group, name in zip(content["param_groups"], names, strict=False):
            lr, betas, decay = _adamw_rates(name, self.hyper)
            group.update(initial_lr=lr, betas=betas, eps=1e-10, weight_decay=decay)
        for group in content["param_groups"][len(names) :]:
            group.update(initial_lr=self.hyper.matrix_lr, ns_steps=5, beta2=0.9, momentum=0.9)
        return content

    def _meta(self, horizon: int) -> dict[str, Any]:
        meta = super()._meta(horizon)
        del meta["dataloader_state_dict"]
        window = self.dials.short_window or 512
        user = meta["user_config"]
        for flag in ("core_metric_every", "core_metric_max_per_task", "sample_every"):
            del user[flag]
        user |= {"num_shards": self.num_shards, "short_seq_len": window}
        meta["model_config"]["short_seq_len"] = window
        return meta | {"dataloader_row": self.cursor[0]}


def make_v2_base(base: Path, vocab_size: int, row_len: int) -> Path:
    """Make the texts and the tokenizer of `make_base` in v2's places, and pack the shards."""
    old, data = make_base(base / "old", vocab_size), base / DATA
    data.parent.mkdir(parents=True)
    shutil.move(old / "base_data_climbmix", data)
    shutil.move(old / "tokenizer", data / "tokenizer")
    encoding = load_encoding(data / "tokenizer")
    bos = encoding.encode_single_token("<|bos|>")
    write_shards(data, lambda text: [bos, *encoding.encode_ordinary(text)], row_len, vocab_size)
    return base
