"""What can be known of a Triton kernel without a card; test_relu2.py runs it as a process.

`numbers`: by Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported). `code`: by
its compiler, which makes machine code for cards that are not there.
"""

from __future__ import annotations

import sys

import torch

from trainer.model.relu2 import TILES

SHARED_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}  # a block's, by capability
WIDTH = 768


def numbers() -> None:
    from trainer.model.relu2_kernel import product

    for rows, width, tile in ((100, 64, "32x64x32x4x1"), (33, 96, "16x32x16x4x1")):
        for dtype, bound in ((torch.float32, 2e-7), (torch.float16, 3e-4)):
            draw = torch.Generator().manual_seed(rows)
            x, g = (torch.randn(rows, width, generator=draw).to(dtype) for _ in range(2))
            up = (torch.randn(4 * width, width, generator=draw) / width**0.5).to(dtype)
            down = (torch.randn(width, 4 * width, generator=draw) / width**0.5).to(dtype)
            before = (x.double() @ up.double().T).relu()
            hidden = product(x, up.t(), tile)
            _near(hidden, before**2, bound)
            gradient = product(g, down, tile, hidden)
            _near(gradient, (g.double() @ down.double()) * 2 * before, bound)
            x[3, 5] = float("nan")
            poisoned = product(x, up.t(), tile).isnan()
            if not poisoned[3].all() or poisoned.sum() != 4 * width:
                raise SystemExit("NaN does not stay NaN in its row")
            print(f"{dtype}, {rows} x {width}, tile {tile}")


def _near(found: torch.Tensor, right: torch.Tensor, bound: float) -> None:
    off = ((found.double() - right).norm() / right.norm()).item()
    if not off < bound:
        raise SystemExit(f"off by {off:.1e}, allowed {bound:.1e}")


def code() -> None:
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    from trainer.model.relu2_kernel import Tile, _product, constants

    weights = {False: torch.empty(4 * WIDTH, WIDTH).t(), True: torch.empty(WIDTH, 4 * WIDTH)}
    for capability, most in SHARED_BYTES.items():
        for name in TILES:
            tile = Tile.named(name)
            for backward, weight in weights.items():
                constant = constants(weight, backward, tile)
                pointers = dict.fromkeys(("a", "b", "before", "result"), "*bf16")
                source = ASTSource(
                    _product,
                    {**pointers, "rows": "i32", **dict.fromkeys(constant, "constexpr")},
                    constexprs=constant,
                    attrs={(i,): [["tt.divisibility", 16]] for i in range(5)},
                )
                options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
                made = triton.compile(source, GPUTarget("cuda", capability, 32), options)
                tensor_cores = any(w in made.asm["ptx"] for w in ("mma.sync", "wgmma", "tcgen05"))
                if not made.asm["cubin"] or not tensor_cores:
                    raise SystemExit(f"{name} for {capability}: no tensor cores are used")
                if made.metadata.shared > most:
                    raise SystemExit(f"{name} for {capability}: more shared memory than there is")


if __name__ == "__main__":
    {"numbers": numbers, "code": code}[sys.argv[1]]()
