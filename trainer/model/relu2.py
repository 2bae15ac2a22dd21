"""MLP with relu² fused into the matrix products (Triton).

The compiler calls the vendor's library for products. So the hidden layer, four widths and the
largest tensor of a block, is written to memory as a product's result and read again for relu², and
so is a gradient for its derivative in the backward pass: four unnecessary passes. Here each product
applies it to values still in registers. Counted, not measured, at depth 12 and 65,536 tokens a
step: 19 GB less memory traffic, 38 ms of an RTX 4070's 1,180 ms.

The gain depends on how close a Triton product comes to the library's, so each tile is raced against
the compiler's own block and used only if it is faster and agrees. The kernel rounds less often than
the compiled block: the hidden layer before relu² is never rounded to bf16.

Not yet run on a GPU: results checked by Triton's interpreter, code by its compiler (tests/trainer/
test_relu2.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.contract import units
from trainer.contract.shape import ModelShape
from trainer.model import layer
from trainer.model.architecture import block, mlp
from trainer.runtime import autotune

COMPILED, RACE = "compiled", "race"
# rows x columns of the result, terms at a time, warps, stages: usually fast
TILES = ("128x256x64x8x2", "128x256x64x8x3", "128x128x64x4x3", "128x128x32x4x4", "64x256x32x4x4")


def block_with(tile: str) -> Callable[..., Tensor]:
    """`architecture.block` with the fused MLP of this tile; COMPILED: the block itself."""
    if tile == COMPILED:
        return block

    def block_relu2(*args: Any) -> Tensor:
        return block(*args, mlp=partial(fused_mlp, tile=tile))

    return block_relu2


def pieces_with(tile: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """`layer.relu2` and `layer.d_relu2` by this tile; COMPILED: themselves."""
    if tile == COMPILED:
        return layer.relu2, layer.d_relu2

    def product(h_BTD: Tensor, c_fc: Tensor) -> Tensor:
        return product_relu2(h_BTD.flatten(0, -2), c_fc, tile).view(*h_BTD.shape[:-1], len(c_fc))

    def gradient(d_BTD: Tensor, mlp_proj: Tensor, hidden_BTF: Tensor) -> Tensor:
        hidden_NF = hidden_BTF.flatten(0, -2)
        return product_backward(
            d_BTD.flatten(0, -2).contiguous(), mlp_proj, hidden_NF, tile
        ).view_as(hidden_BTF)

    return product, gradient


def fused_mlp(x_BTD: Tensor, c_fc: Tensor, mlp_proj: Tensor, *, tile: str) -> Tensor:
    """`architecture.mlp`; weights (4 D, D) and (D, 4 D)."""
    return _Mlp.apply(x_BTD.flatten(0, -2), c_fc, mlp_proj, tile).view_as(x_BTD)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, c_fc: Tensor, mlp_proj: Tensor, tile: str) -> Tensor:
        hidden_NF = product_relu2(x_ND, c_fc, tile)
        ctx.save_for_backward(x_ND, hidden_NF, c_fc, mlp_proj)
        ctx.tile = tile
        return hidden_NF @ mlp_proj.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_ND, hidden_NF, c_fc, mlp_proj = ctx.saved_tensors
        gradient_ND = gradients[0].contiguous()
        before_NF = product_backward(gradient_ND, mlp_proj, hidden_NF, ctx.tile)
        return before_NF @ c_fc, before_NF.t() @ x_ND, gradient_ND.t() @ hidden_NF, None


@torch.library.custom_op("traind::product_relu2", mutates_args=())
def product_relu2(x_ND: Tensor, weight_FD: Tensor, tile: str) -> Tensor:
    """relu(x weightᵀ)² (N, F)."""
    if x_ND.device.type != "cuda":
        return (x_ND @ weight_FD.t()).relu().square()
    from trainer.model.relu2_kernel import product

    return product(x_ND.contiguous(), weight_FD.t(), tile)


@torch.library.custom_op("traind::product_backward", mutates_args=())
def product_backward(
    gradient_ND: Tensor, weight_DF: Tensor, hidden_NF: Tensor, tile: str
) -> Tensor:
    """The gradient (N, F) of what went into relu²: gradient weight times 2 sqrt(hidden)."""
    if gradient_ND.device.type != "cuda":
        return (gradient_ND @ weight_DF) * (2 * hidden_NF.sqrt())
    from trainer.model.relu2_kernel import product

    return product(gradient_ND, weight_DF, tile, hidden_NF)


@product_relu2.register_fake
def _(x_ND: Tensor, weight_FD: Tensor, tile: str) -> Tensor:
    return x_ND.new_empty((x_ND.size(0), weight_FD.size(0)))


@product_backward.register_fake
def _(gradient_ND: Tensor, weight_DF: Tensor, hidden_NF: Tensor, tile: str) -> Tensor:
    return torch.empty_like(hidden_NF)


# --- the race ------------------------------------------------------------------------------------


def choose(
    tile: str,
    shape: ModelShape,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    memory: Path | None = None,
    *,
    compiled: bool = False,
) -> tuple[str, str]:
    """(the tile to use, why). COMPILED stays; RACE becomes the fastest, from the cache `memory` or
    from a race; a tile stays if it runs and agrees with the block, else it becomes COMPILED.

    Raises torch.OutOfMemoryError, which decides nothing about a tile.
    """
    why = "not requested" if tile == COMPILED else missing(device, dtype)
    if why:
        return COMPILED, why
    race = partial(_Race, shape, rows, dtype, device, compiled)
    if tile != RACE:
        _, fault = race().tried(tile)
        return (COMPILED, f"{tile} {fault}") if fault else (tile, "chosen at the first start")
    names = (COMPILED, *candidates(shape))
    said: list[str] = []
    way = "compiled" if compiled else "not compiled"
    key = autotune.key(shape, rows, dtype, device, f"relu2 of width {shape.n_embd}, {way}")
    won = autotune.Memory(memory).winner(key, names, lambda: race().winner(names, said))
    return won, "; ".join(said) or "won on this GPU before"


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Missing requirement of the kernel, or None."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return "the kernels are for bf16 on NVIDIA cards"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels are for cards of compute capability 8.0 and newer"
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def candidates(shape: ModelShape) -> list[str]:
    """Tiles that divide the shape's sizes: both products sum over the width."""
    sizes = [(tile, *map(int, tile.split("x")[1:3])) for tile in TILES]
    width = shape.n_embd
    return [tile for tile, cols, terms in sizes if width % terms == 0 and 4 * width % cols == 0]


class _Race:
    """Race of the MLP of a training shape, forward and backward, one variant after another."""

    def __init__(
        self,
        shape: ModelShape,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        compiled: bool,
    ) -> None:
        self.device, self.compiled = device, compiled
        self.operands = _operands(shape, rows, dtype, device)
        self.right = _there_and_back(mlp, self.operands)

    def winner(self, names: tuple[str, ...], said: list[str]) -> str:
        """The fastest of those that run and agree; appends a remark on each to `said`."""
        seconds: dict[str, float] = {}
        for name in names:
            run, why = self.tried(name)
            if not why:
                seconds[name] = autotune.best_seconds(run, self.device)
                why = units.duration(seconds[name])
            said.append(f"{name} {why}")
        if COMPILED not in seconds:
            raise RuntimeError(f"the MLP of the compiler itself fails: {'; '.join(said)}")
        return min(seconds, key=seconds.__getitem__)

    def tried(self, name: str) -> tuple[Callable[[], object], str | None]:
        """(the variant of that name, why it cannot be raced or None)."""
        way = mlp if name == COMPILED else partial(fused_mlp, tile=name)
        run = partial(_there_and_back, autotune.as_called(way, self.compiled), self.operands)
        try:
            return run, None if autotune.agree(run(), self.right) else "does not agree"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # errors of Triton and of the compiler have no common base
            return run, f"does not run ({type(error).__name__})"


def _operands(
    shape: ModelShape, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """x and both weights of the training shape."""
    width = shape.n_embd
    sizes = [(rows, shape.sequence_len, width), (4 * width, width), (width, 4 * width)]
    draw = torch.Generator(device).manual_seed(0)
    operands = [torch.randn(size, generator=draw, device=device) for size in sizes]
    for weight in operands[1:]:
        weight /= weight.size(1) ** 0.5
    return tuple(operand.to(dtype).requires_grad_() for operand in operands)


def _there_and_back(way: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The MLP's result and its three gradients, for a gradient like x."""
    y = way(*operands)
    return y.detach(), *torch.autograd.grad(y, operands, operands[0].detach())
