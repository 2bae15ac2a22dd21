"""relu² inside its products: the formula, the step made of it, the race, and the kernel itself.

On the CPU the two operations are the plain formula. The kernel is read by Triton's interpreter and
made into machine code by its compiler where Triton is installed; on a card it was not seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.shapes import RATES, Kind, batches, trained_model
from tests.trainer.test_step import assert_equal_gradients, gradients, plain_twin
from trainer.contract import orders
from trainer.contract.orders import AttemptOrder
from trainer.model import relu2
from trainer.model.architecture import block, mlp
from trainer.optim.optimizer import Optimizer
from trainer.runtime import autotune
from trainer.train import frozen_choices, setup
from trainer.train.step import Stepper

KIND, CPU = Kind(), torch.device("cpu")
TILE = relu2.TILES[0]
ASKED = {"threads": 1, "compile": False, "kernels": "triton"}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations are taken for kernels that this device has."""
    monkeypatch.setattr(relu2, "missing", lambda *_: None)


def operands(width: int = 32, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    sizes = [(2, 7, width), (4 * width, width), (width, 4 * width)]
    return tuple(torch.randn(s, generator=draw, dtype=dtype).requires_grad_() for s in sizes)


def test_value_and_gradients_are_those_of_the_block() -> None:
    upstream = torch.randn(2, 7, 32, dtype=torch.float64).transpose(0, 1).contiguous()
    found = []
    for way in (mlp, partial(relu2.fused_mlp, tile=TILE)):
        inputs = operands()
        y = way(inputs[0], inputs[1], inputs[2])
        # a gradient that lies in memory the other way round
        y.backward(upstream.transpose(0, 1))
        found.append([y.detach(), *(t.grad for t in inputs)])
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted)


def test_the_operators_keep_torchs_rules() -> None:
    x, up, down = (t.detach().flatten(0, -2) for t in operands())
    torch.library.opcheck(relu2.product_relu2, (x, up, TILE))
    hidden = relu2.product_relu2(x, up, TILE)
    torch.library.opcheck(relu2.product_backward, (x, down, hidden, TILE))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.parametrize(
    "compile",
    [False, pytest.param(True, marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++"))],
)
def test_a_step_of_it_equals_the_reference(everywhere: None, compile: bool) -> None:
    model = trained_model(KIND)
    plain, hyper, data = plain_twin(model), KIND.plan()[1], batches(KIND)
    ours = Stepper(
        model, Optimizer(model, hyper), compile=compile, deterministic=True, rows=2, relu2_tile=TILE
    )
    assert ours.describe_choices()["relu2"] == TILE
    assert_equal_gradients(gradients(ours, data), plain, data)
    wanted = sum(plain.loss(t, y).item() for t, y in data) / len(data)
    assert ours.train_step(data, **RATES).loss.item() == pytest.approx(wanted, rel=1e-6)
    assert ours.compiler.active == compile, ours.compiler.reason


def test_what_is_not_asked_for_leaves_the_block_and_the_fingerprint_as_they_were() -> None:
    model = trained_model(KIND)
    ours = Stepper(model, Optimizer(model, KIND.plan()[1]), compile=False, deterministic=True)
    assert relu2.block_with(ours.relu2_tile) is block
    assert "relu2" not in ours.describe_choices()


# --- the race ------------------------------------------------------------------------------------


def settled(tile: str, memory: Path | None = None) -> tuple[str, str]:
    return relu2.choose(tile, KIND.plan()[0], 2, torch.float32, CPU, memory)


def test_a_cpu_has_no_race_and_says_why() -> None:
    assert settled(relu2.COMPILED) == (relu2.COMPILED, "not requested")
    for tile in (relu2.RACE, TILE):
        used, why = settled(tile)
        assert used == relu2.COMPILED
        assert "bf16 on NVIDIA cards" in why


class TritonError(Exception):
    """Triton's own errors are of no kind that Python or torch knows."""


def contestants(monkeypatch: pytest.MonkeyPatch, compiled_seconds: float = 0.01) -> None:
    """Ways that are slow, quick, broken or wrong, by the name of their tile."""
    seconds = {"slow": 0.03, "quick": 0.002}

    def fused(x: Tensor, c_fc: Tensor, mlp_proj: Tensor, *, tile: str) -> Tensor:
        time.sleep(seconds.get(tile, 0.0))
        if tile == "broken":
            raise TritonError("out of resources: shared memory")
        if tile == "too large":
            raise torch.OutOfMemoryError("another process has it all")
        if tile == "wrong":
            return mlp(x, c_fc, mlp_proj) * 1.05
        if tile == "wrong gradient":
            return mlp(x, c_fc.detach() * 0.9 + c_fc * 0.1, mlp_proj)
        return mlp(x, c_fc, mlp_proj)

    def compiled(x: Tensor, c_fc: Tensor, mlp_proj: Tensor) -> Tensor:
        time.sleep(compiled_seconds)
        return mlp(x, c_fc, mlp_proj)

    monkeypatch.setattr(relu2, "fused_mlp", fused)
    monkeypatch.setattr(relu2, "mlp", compiled)


def taking_part(monkeypatch: pytest.MonkeyPatch, *tiles: str) -> None:
    monkeypatch.setattr(relu2, "candidates", lambda _: list(tiles))


def test_the_fastest_that_agrees_wins_and_is_remembered(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = tmp_path / "choices.json"
    contestants(monkeypatch)
    taking_part(monkeypatch, "slow", "broken", "wrong", "wrong gradient", "quick")
    tile, why = settled(relu2.RACE, memory)
    assert tile == "quick"
    assert "broken does not run (TritonError)" in why
    for said in ("wrong does not agree", "wrong gradient does not agree", "compiled 1"):
        assert said in why
    assert list(json.loads(memory.read_text()).values()) == ["quick"]

    monkeypatch.setattr(relu2._Race, "winner", lambda *_: pytest.fail("raced again"))
    assert settled(relu2.RACE, memory) == ("quick", "won on this GPU before")


def test_where_no_tile_wins_the_compilers_block_stays(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestants(monkeypatch, compiled_seconds=0.0)
    taking_part(monkeypatch, "slow")
    assert settled(relu2.RACE)[0] == relu2.COMPILED


def test_a_tile_settled_once_stays_where_it_runs_and_agrees(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestants(monkeypatch)
    assert settled("slow") == ("slow", "chosen at the first start")
    assert settled("broken") == (relu2.COMPILED, "broken does not run (TritonError)")
    assert settled("wrong") == (relu2.COMPILED, "wrong does not agree")


def test_a_full_card_decides_nothing(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = tmp_path / "choices.json"
    contestants(monkeypatch)
    taking_part(monkeypatch, "quick", "too large")
    for tile in (relu2.RACE, "too large"):
        with pytest.raises(torch.OutOfMemoryError):
            settled(tile, memory)
    assert not memory.exists()


def test_a_race_that_the_compilers_own_block_cannot_run_is_remembered_by_nobody(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = tmp_path / "choices.json"
    contestants(monkeypatch)
    taking_part(monkeypatch, "quick")
    monkeypatch.setattr(autotune, "agree", lambda *_: False)
    with pytest.raises(RuntimeError, match="compiled does not agree; quick does not agree"):
        settled(relu2.RACE, memory)
    assert not memory.exists()


def test_compiled_and_not_compiled_are_races_of_their_own(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory, raced = tmp_path / "choices.json", []
    monkeypatch.setattr(relu2._Race, "__init__", lambda _, *given: raced.append(given[-1]))
    monkeypatch.setattr(relu2._Race, "winner", lambda *_: relu2.COMPILED)
    for compiled in (False, True, False, True):
        relu2.choose(relu2.RACE, KIND.plan()[0], 2, torch.float32, CPU, memory, compiled=compiled)
    assert raced == [False, True]


def test_only_tiles_that_divide_the_sizes_take_part() -> None:
    wide = Kind(aspect_ratio=64, head_dim=64, depth=12).plan()[0]
    assert relu2.candidates(wide) == list(relu2.TILES)
    narrow = Kind(depth=3, aspect_ratio=32, head_dim=32).plan()[0]  # width 96
    assert relu2.candidates(narrow) == ["128x128x32x4x4"]


def test_the_winner_stays_for_the_runs_life(lab) -> None:
    run = lab("frozen", numerics=ASKED)
    order = orders.read(run.order(), AttemptOrder)

    def settled_choices() -> frozen_choices.Choices:
        return frozen_choices.choose(
            order, run.run_dir, CPU, lambda *_: pytest.fail("rows are given")
        )

    first = settled_choices()
    assert setup._relu2_tile(order, first) == relu2.RACE
    for tile in (TILE, relu2.COMPILED):  # the second start finds a card that cannot run it
        assert frozen_choices.freeze_winners(run.run_dir, first, {"32": "sdpa"}, tile).relu2 == tile
        assert setup._relu2_tile(order, settled_choices()) == TILE


def test_a_run_that_asks_for_it_where_it_is_not_trains_with_the_compilers_and_says_so(lab) -> None:
    asked, plain = lab("asked", numerics=ASKED), lab("plain")
    asked.interrupt("pause", 12)
    for run in (asked, plain):
        run.run()
        assert run.exit()["outcome"] == "completed"
    assert asked.curve() == plain.curve()
    notices = [n for n in asked.events("notice") if n["code"] == "kernels"]
    assert [n["level"] for n in notices] == ["warning"]  # once, however often it starts
    assert "the compiler's are used (the kernels are for bf16" in notices[0]["message"]
    assert [f["choices"]["relu2"] for f in asked.events("frozen")] == ["compiled"] * 2
    assert all("relu2" not in f["choices"] for f in plain.events("frozen"))
    assert all(r["approximate"] is None for r in asked.events("resumed"))


# --- the kernel ----------------------------------------------------------------------------------


@pytest.mark.needs("triton")
@pytest.mark.parametrize("what", ["numbers", "step_numbers", "code"])
def test_the_kernels_without_a_card(what: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    if what != "code":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.triton_checks", what],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("gpu")
@pytest.mark.parametrize("tile", relu2.TILES)
def test_on_a_card_each_tile_that_runs_agrees_with_the_block(tile: str) -> None:
    shape = Kind(aspect_ratio=64, head_dim=64, depth=12).plan()[0]
    given = relu2._operands(shape, 2, torch.bfloat16, torch.device("cuda"))
    right = relu2._there_and_back(mlp, given)
    run = partial(relu2._there_and_back, partial(relu2.fused_mlp, tile=tile), given)
    found = autotune.attempt(run)
    if found is None:
        pytest.skip("this tile needs more shared memory than the card has")
    assert autotune.agree(found, right)
