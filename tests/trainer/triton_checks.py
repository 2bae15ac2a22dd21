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


def step_numbers() -> None:
    """The kernels of the head and of the tables, against the plain formulas."""
    from trainer.model.embedding_kernel import add_rows
    from trainer.model.head import chunk_loss_and_gradient, num_counted
    from trainer.model.head_kernel import loss_and_gradient_in_place

    draw = torch.Generator().manual_seed(0)
    for vocab in (1000, 4096, 5000):
        z = 20 * torch.randn(7, vocab, generator=draw)
        targets = torch.randint(0, vocab, (7,), generator=draw)
        targets[2] = -1
        factor = torch.tensor(0.25)
        loss, gradient = chunk_loss_and_gradient(z, targets, factor)
        found, written = loss_and_gradient_in_place(z, targets, factor)
        if written.data_ptr() != z.data_ptr() or found[2] != 0 or written[2].any():
            raise SystemExit("not in place, or a target of -1 counts")
        _near(found, loss.double(), 1e-6)
        _near(written, gradient.double(), 1e-6)
    none, z = torch.full((7,), -1), 20 * torch.randn(7, 1000, generator=draw)
    counted = num_counted(none)
    found, written = loss_and_gradient_in_place(z, none, factor / counted)
    if found.any() or written.any():
        raise SystemExit("a micro-batch without a target has a loss or a gradient")
    z = torch.zeros(2, 100)
    z[1, 3] = float("nan")
    if not loss_and_gradient_in_place(z, torch.tensor([1, 1]), factor)[0][1].isnan():
        raise SystemExit("NaN does not stay NaN")
    for width, count in ((24, 100), (300, 333)):
        # one slot far more often than the kernel takes tokens at a time, some never
        slots = torch.randint(0, 40, (count,), generator=draw)
        slots[::3] = 7
        rows = torch.randn(count, width, generator=draw).to(torch.bfloat16)
        total = torch.randn(50, width, generator=draw)
        right = total.double().index_add(0, slots, rows.double())
        ordered, order = torch.sort(slots, stable=True)
        add_rows(total, rows, ordered, order)
        _near(total, right, 1e-6)
    print("the kernels of the step agree")


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
    {"numbers": numbers, "step_numbers": step_numbers, "code": code}[sys.argv[1]]()
