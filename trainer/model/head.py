"""Head: softcapped logits and cross entropy in chunks, with the gradient computed in the same pass.

Complete logits (tokens x vocabulary, float32, several copies) are most of the memory of a small
model and a large part of its traffic. Here only one chunk of tokens exists at a time: its logits
become its loss and, in place, its gradient, which is used at once for the hidden gradient and, in
float32, the weight's. The backward pass has nothing left to compute.

With z the raw logit, t = tanh(z/15): logit 15t, d loss / d z = (softmax(15t) - onehot)(1 - t²).
15t cannot exceed 15, so the sum of exp(15t) needs no maximum subtracted: 1e6 of them are 4e12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.contract.plan.memory import CHUNK_TOKENS
from trainer.model import onednn
from trainer.model.architecture import SOFTCAP

IGNORED = -1

ChunkFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def loss_and_gradient(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    gradient_VD: Tensor,
    scale: Tensor,
    chunk_function: ChunkFunction | None = None,
    *,
    first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross entropy: (mean loss over the targets that count, `scale` x its gradient for x_ND).

    `scale` x the gradient of the weight is added to gradient_VD (float32) in place; with `first`
    it replaces the content.
    Targets of -1 do not count; if none counts, loss and gradient are 0.
    x_ND and weight_VD are in the compute dtype.
    """
    compute = chunk_function or chunk_loss_and_gradient
    counted = num_counted(targets_N)
    factor = scale / counted
    gradient_ND = torch.empty_like(x_ND)
    losses = []
    for x, targets, out in _chunks(x_ND, targets_N, gradient_ND):
        z_NV = onednn.linear(x, weight_VD)
        nll_N, gradient_NV = compute(z_NV, targets, factor)
        losses.append(nll_N.sum())
        torch.mm(gradient_NV, weight_VD, out=out)
        add_product(gradient_VD, gradient_NV, x, first=first and len(losses) == 1)
        del z_NV, gradient_NV  # free them before the next chunk's are allocated
    return torch.stack(losses).sum() / counted, gradient_ND


def num_counted(targets_N: Tensor) -> Tensor:
    """Number of targets in the mean, 0-d: 1 if none counts, since their sum is 0."""
    return (targets_N != IGNORED).sum().clamp_min(1)


def chunk_loss_and_gradient(
    z_NV: Tensor, targets_N: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss of each token in nats, `factor` x the gradient for z). Pure, to be compiled."""
    vocab = torch.arange(z_NV.size(-1), device=z_NV.device)
    counts_N = targets_N != IGNORED
    # tanh by exp, which vectorizes better: 1.4 times as fast for the whole function; the error of
    # 1e-7 is absolute, which is negligible for a logit of 15 t
    t_NV = 1 - 2 / (torch.exp(z_NV.float() * (2 / SOFTCAP)) + 1)
    e_NV = torch.exp(SOFTCAP * t_NV)
    sum_N1 = e_NV.sum(dim=-1, keepdim=True)
    onehot_NV = vocab == targets_N[:, None]
    target_N = torch.gather(t_NV, 1, targets_N.clamp_min(0)[:, None])[:, 0]
    nll_N = torch.where(counts_N, sum_N1[:, 0].log() - SOFTCAP * target_N, 0.0)
    weight_N1 = torch.where(counts_N, factor, 0.0)[:, None]
    p_NV = e_NV * (1 / sum_N1)
    gradient_NV = (p_NV - onehot_NV.float()) * (1 - t_NV * t_NV) * weight_N1
    return nll_N, gradient_NV.to(z_NV.dtype)


def token_losses(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    product: Callable[[Tensor, Tensor], Tensor] = F.linear,
) -> Tensor:
    """Loss in nats of each token (N,) float32, 0 where the target is -1; for evaluation.

    product: computes the logits from a chunk of x_ND and weight_VD; another one rounds differently.
    """
    compute = chunk_function or chunk_token_losses
    return torch.cat([compute(product(x, weight_VD), t) for x, t in _chunks(x_ND, targets_N)])


def chunk_token_losses(z_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The loss of each token in nats. To be compiled, but also efficient eagerly: in place."""
    # tanh(u) = 2 s - 1 with s = sigmoid(2 u): logits 30 s - 15, and the 15 drops out. sigmoid
    # vectorizes better than tanh (3.5 times); e^30 a million times is far from overflowing
    s = z_NV.float().mul_(2 / SOFTCAP).sigmoid_()
    picked = torch.gather(s, 1, targets_N.clamp_min(0)[:, None])[:, 0].mul_(2 * SOFTCAP)
    nll = s.mul_(2 * SOFTCAP).exp_().sum(dim=-1).log_() - picked
    return torch.where(targets_N != IGNORED, nll, 0.0)


def chunk_tokens(device: torch.device) -> int:
    """Tokens per chunk of the loss head, by device type."""
    return CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"])


def _chunks(*tensors_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of tokens of all tensors in parallel."""
    size = chunk_tokens(tensors_N[0].device)
    yield from zip(*(t.split(size) for t in tensors_N), strict=True)


def add_product(
    total_OD: Tensor, gradient_NO: Tensor, x_ND: Tensor, *, first: bool = False
) -> None:
    """total_OD += gradient_NOᵀ x_ND with float32 sums, whatever the factors' dtype; `first`: =."""
    beta = 0 if first else 1
    if gradient_NO.dtype == torch.float32:
        total_OD.addmm_(gradient_NO.T, x_ND, beta=beta)
    elif gradient_NO.device.type == "cuda":
        factors = (total_OD, gradient_NO.T, x_ND)
        torch.addmm(*factors, beta=beta, out_dtype=torch.float32, out=total_OD)
    else:
        total_OD.mul_(beta).add_(gradient_NO.T.float() @ x_ND.float())
