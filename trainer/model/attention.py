"""Causal attention with sliding windows: the backends of each device, and their autotuning.

A backend maps q (B, T, H, C) and k, v (B, T, K, C), K dividing H, to (B, T, H, C): key j is visible
to query i when 0 <= i - j <= window (None: the whole past); scale 1/sqrt(C).

No backend is always fastest, so they are raced once per device, shape and window, forward and
backward, and the winner is cached in a file that the caller names.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from trainer.contract.shape import ModelShape
from trainer.model.architecture import Attend, causal, heads_first
from trainer.model.blocked_attention import QUERY_BLOCK, blocked_attention
from trainer.runtime import autotune

Backend = Callable[..., Tensor]
DEFAULT = "sdpa"


def windows(shape: ModelShape) -> tuple[int | None, ...]:
    """Attention window per layer, in tokens. An `L` layer's is sequence_len, a whole training row.

    It matters in longer prompts: nanochat's losses there use this window, and differ by 4e-3 from
    those of unlimited attention (the fixture's CORE items).
    """
    return shape.windows


def bind(name: str, window: int | None) -> Attend:
    """The backend as a function of q, k, v alone."""
    return partial(BACKENDS[name], window=window)


def choose(
    shape: ModelShape,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    memory: Path | None = None,
    *,
    fixed: Mapping[str, str] | None = None,
    compiled: bool = False,
) -> dict[int | None, str]:
    """Choose the backend for each window of the shape: the `fixed` one if available, otherwise the
    fastest, from the cache `memory` or from a race as the block will call it.
    """
    remembered = autotune.Memory(memory)
    chosen: dict[int | None, str] = {}
    for window in dict.fromkeys(windows(shape)):
        name = (fixed or {}).get(str(window))
        if name is None or not is_there(name, device, dtype):
            heads = f"{shape.n_head}/{shape.n_kv_head}x{shape.head_dim}"
            what = f"heads {heads}, window {window}"
            able = candidates(device, dtype, window, shape.sequence_len)
            try:
                name = remembered.winner(
                    autotune.key(shape, rows, dtype, device, what),
                    able,
                    partial(race, shape, rows, dtype, device, window, compiled=compiled),
                )
            except autotune.Undecided:  # a broken compiler: the step detects it and runs without
                name = able[0]
        chosen[window] = name
    return chosen


def is_there(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """True if a backend can run on this device in this dtype."""
    if name in _CUDA_EXTRAS:
        return device.type == "cuda" and dtype != torch.float32 and _CUDA_EXTRAS[name]()
    return name in BACKENDS


def candidates(
    device: torch.device, dtype: torch.dtype, window: int | None, length: int
) -> list[str]:
    """Backends to race here; a single one needs no race.

    On the CPU a rule decides: a race on a busy machine could give other bits at the next resume.
    """
    windowed = window is not None and window < length
    plain = ["masked" if windowed else DEFAULT]
    if device.type == "cpu" and dtype == torch.float32 and (windowed or length > QUERY_BLOCK):
        return ["blocked"]
    if device.type != "cuda" or dtype == torch.float32:
        return plain
    extra = [name for name, there in _CUDA_EXTRAS.items() if there()]
    # flex compiles for half a minute, and without a window it has no block to skip
    return plain + [name for name in extra if windowed or name != "flex"]


def race(
    shape: ModelShape,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None,
    *,
    compiled: bool = False,
) -> str:
    """Name of the fastest candidate, forward and backward, at the training shape, whose results
    agree with the masked backend.

    compiled: as part of a compiled block, where some run differently and some not at all.
    Raises autotune.Undecided if none runs, torch.OutOfMemoryError.
    """
    names = candidates(device, dtype, window, shape.sequence_len)
    if len(names) == 1:
        return names[0]
    operands = _operands(shape, rows, dtype, device)
    right = _first_row_in_float32(bind("masked", window), operands)
    seconds: dict[str, float] = {}
    for name in names:
        run = partial(_there_and_back, autotune.as_called(bind(name, window), compiled), operands)
        found = autotune.attempt(run)
        if found is not None and autotune.agree([t[:1] for t in found], right):
            seconds[name] = autotune.best_seconds(run, device)
    if not seconds:
        raise autotune.Undecided(f"of {', '.join(names)} none runs and agrees with the mask")
    return min(seconds, key=seconds.__getitem__)


def sdpa_kernel(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> str:
    """The kernel that torch selects for "sdpa" without a window here: it depends on GPU, torch
    version and determinism, and so do the bits."""
    heads = [(1, h, shape.sequence_len, shape.head_dim) for h in (shape.n_head,) * 3]
    q, k, v = (torch.empty(s, dtype=dtype, device=device, requires_grad=True) for s in heads)
    chosen = torch._fused_sdp_choice(q, k, v, is_causal=True)  # pyright: ignore[reportPrivateImportUsage]
    return SDPBackend(chosen).name.lower()


# --- the backends --------------------------------------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """torch's fused kernel: flash attention if available, no mask in memory."""
    if window is not None and window < q.size(1) - 1:
        return masked(q, k, v, window)
    y = F.scaled_dot_product_attention(*heads_first(q, k, v), is_causal=True)
    return y.transpose(1, 2)


def masked(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The window as a T x T mask: always correct, reads every key."""
    return causal(q, k, v, window)


def blocked(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Matrix products over blocks of queries: fastest on the CPU, see `blocked_attention.py`."""
    rows, length, heads, channels = q.shape
    q, k, v = (t.reshape(rows * heads, length, channels).contiguous() for t in heads_first(q, k, v))
    y, _ = blocked_attention(q, k, v, length if window is None else window)
    return y.view(rows, heads, length, channels).transpose(1, 2)


def varlen(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """torch's own flash kernel with window_size (2.13 and later; not yet run on a GPU)."""
    from torch.nn.attention.varlen import varlen_attn

    rows, length = q.shape[:2]
    # torch 2.11 does not know this argument
    grouped: dict[str, Any] = {"enable_gqa": True} if q.size(2) != k.size(2) else {}
    bounds = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device)
    y = varlen_attn(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        bounds,
        bounds,
        length,
        length,
        window_size=(_reach(window, length), 0),
        **grouped,
    )
    assert isinstance(y, Tensor)
    return y.view_as(q)


def flex(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """FlexAttention with a block mask: skips the blocks that the window hides."""
    from torch.nn.attention.flex_attention import flex_attention

    y = _compiled(flex_attention)(
        *(t.transpose(1, 2) for t in (q, k, v)),
        block_mask=_block_mask(q.size(1), _reach(window, q.size(1)), q.device),
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)


def flash3(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """FlashAttention 3, if installed (Hopper)."""
    flash = importlib.import_module("flash_attn_interface")
    y = flash.flash_attn_func(
        q,
        k,
        v,
        causal=True,
        window_size=(-1 if window is None else window, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return y[0] if isinstance(y, tuple) else y


BACKENDS: dict[str, Backend] = {
    "sdpa": sdpa,
    "masked": masked,
    "blocked": blocked,
    "varlen": varlen,
    "flex": flex,
    "flash3": flash3,
}


def _reach(window: int | None, length: int) -> int:
    """The window for flash kernels: -1 where it hides nothing, which selects their faster path."""
    return -1 if window is None or window >= length - 1 else window


@lru_cache(maxsize=8)
def _block_mask(length: int, window: int, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b, h, i, j):
        seen = i >= j
        return seen if window < 0 else seen & (i - j <= window)

    return create_block_mask(visible, None, None, length, length, device=device)


@lru_cache(maxsize=2)
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def _has_flash3() -> bool:
    return importlib.util.find_spec("flash_attn_interface") is not None


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


_CUDA_EXTRAS = {"varlen": _has_varlen, "flex": _has_triton, "flash3": _has_flash3}


# --- the race ------------------------------------------------------------------------------------


def _operands(
    shape: ModelShape, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Random q, k, v of the training shape and a gradient for the result: on constant numbers
    kernels run faster than in training, and a wrong one gives the same result as a right one."""
    draw = torch.Generator(device).manual_seed(0)
    heads = (shape.n_head, shape.n_kv_head, shape.n_kv_head, shape.n_head)
    sizes = [(rows, shape.sequence_len, h, shape.head_dim) for h in heads]
    drawn = [torch.randn(s, generator=draw, device=device).to(dtype) for s in sizes]
    return (*(t.requires_grad_() for t in drawn[:3]), drawn[3])


def _there_and_back(attend: Attend, operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward and backward pass: the result and the gradients of q, k and v."""
    q, k, v, gradient = operands
    y = attend(q, k, v)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), gradient)


def _first_row_in_float32(attend: Attend, operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first = [t.detach()[:1].float() for t in operands]
    return _there_and_back(attend, (*(t.requires_grad_() for t in first[:3]), first[3]))
