"""Reference optimizer step: AdamW for tables, head and scalars; Muon for matrices.

Muon works on a stack that is built from the matrices and copied back, as nanochat does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from tests.reference.model import PlainGPT
from trainer.contract.plan import Hyperparameters

POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr, beta1, beta2, bias1, bias2, weight_decay
) -> None:
    """One AdamW step in place. Arithmetic float32, whatever p, m and v are stored in."""
    p32, g32 = p.float(), g.float()
    p32 = p32 * (1 - lr * weight_decay)
    m32 = beta1 * m.float() + (1 - beta1) * g32
    v32 = beta2 * v.float() + (1 - beta2) * g32 * g32
    m_hat = m32 / bias1
    v_hat = v32 / bias2
    p.copy_(p32 - lr * m_hat / (v_hat.sqrt() + 1e-10))
    m.copy_(m32)
    v.copy_(v32)


def muon(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr, momentum, weight_decay, dtype: torch.dtype
) -> None:
    """One Muon step in place on a stack (K, rows, cols); section 4 of the recipe, item by item."""
    rows, cols = p.shape[-2:]
    m.copy_(m + (1 - momentum) * (g - m))
    g = g + momentum * (m - g)
    x = g.to(torch.bfloat16) if dtype == torch.bfloat16 else g
    total = frobenius(x.float())
    row_norms = x.float().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    x = (x.float() * (total / rows**0.5 / row_norms)).to(x.dtype)
    x = (x.float() / (frobenius(x.float()) * 1.01 + 1e-6)).to(x.dtype)
    for a, b, c in POLAR_EXPRESS:
        if rows <= cols:
            A = x @ x.mT
            x = a * x + (b * A + c * (A @ A)) @ x
        else:
            A = x.mT @ x
            x = a * x + x @ (b * A + c * (A @ A))
    u = x.float()
    u = u * (min(rows, cols) ** 0.5 / frobenius(u))
    mean = u.square().mean(dim=-1 if rows >= cols else -2, keepdim=True)
    v.copy_(v + (1 - 0.9) * (mean - v))
    scaled = u * v.clamp_min(1e-10).rsqrt()
    u = scaled * (frobenius(u) / frobenius(scaled))
    lr = lr * max(1, rows / cols) ** 0.5
    mask = (u * p) >= 0
    p.copy_(p - lr * u - lr * weight_decay * p * mask)


def muon_of_march(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr, momentum, weight_decay, dtype: torch.dtype
) -> None:
    """Muon of recipe 2026-03: without row equilibration and renormalization of the update."""
    rows, cols = p.shape[-2:]
    m.copy_(torch.lerp(m, g, 1 - momentum))
    x = torch.lerp(g, m, momentum)
    if dtype == torch.bfloat16:
        x = x.to(torch.bfloat16)
    x = (x.float() / (x.float().norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-6)).to(x.dtype)
    for a, b, c in POLAR_EXPRESS:
        if rows > cols:
            A = x.mT @ x
            x = a * x + x @ (b * A + c * (A @ A))
        else:
            A = x @ x.mT
            x = a * x + (b * A + c * (A @ A)) @ x
    x = x.float()
    axis = -1 if rows >= cols else -2
    a = x.square().mean(dim=axis, keepdim=True)
    length = x.size(axis)
    before = (a.sum(dim=(-2, -1), keepdim=True) * length).sqrt()
    v.copy_(torch.lerp(v, a, 0.1))
    s = v.clamp_min(1e-10).rsqrt()
    after = ((a * length * s.square()).sum(dim=(-2, -1), keepdim=True)).sqrt()
    x = x * s * (before / after.clamp_min(1e-10))
    lr = lr * max(1, rows / cols) ** 0.5
    p.copy_(p - lr * x - lr * weight_decay * p * (x * p >= 0))


def frobenius(x: Tensor) -> Tensor:
    """Norm of each matrix of the stack, (K, 1, 1)."""
    return x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10)


class PlainOptimizer:
    """Groups of the recipe's section 3 over a PlainGPT whose gradients are the step's mean."""

    def __init__(
        self,
        model: PlainGPT,
        hyper: Hyperparameters,
        wrap: Callable[[Callable], Callable] = lambda function: function,
    ) -> None:
        self.model, self.hyper = model, hyper
        self.adamw = wrap(adamw)
        self.muon = wrap(muon_of_march if hyper.muon == "2026-03" else muon)
        self.count = 0
        self.adamw_groups = {
            name: _adamw_rates(name, hyper)
            for name, _ in model.named_parameters()
            if not name.startswith("transformer.h.")
        }
        self.muon_groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        for i in range(model.shape.n_layer):
            for name in ("c_q", "c_k", "c_v", "c_proj", "ve_gate"):
                self._add_matrix(f"transformer.h.{i}.attn.{name}.weight")
            for name in ("c_fc", "c_proj"):
                self._add_matrix(f"transformer.h.{i}.mlp.{name}.weight")
        self.state: dict[object, tuple[Tensor, Tensor]] = {}

    def _add_matrix(self, name: str) -> None:
        found = dict(self.model.named_parameters()).get(name)
        if found is not None:
            self.muon_groups[(found.size(0), found.size(1))].append(name)

    @torch.no_grad()
    def step(self, lr_multiplier: float, momentum: float, weight_decay: float) -> None:
        self.count += 1
        parameters = dict(self.model.named_parameters())
        for name, (lr, betas, decay) in self.adamw_groups.items():
            p = parameters[name]
            m, v = self._state(name, lambda p=p: (torch.zeros_like(p), torch.zeros_like(p)))
            biases = [1 - beta**self.count for beta in betas]
            rates = (lr * lr_multiplier, *betas, *biases, decay)
            self.adamw(
                p, _gradient(p), m, v, *(torch.tensor(r, dtype=torch.float32) for r in rates)
            )
        for (rows, cols), names in sorted(self.muon_groups.items()):
            stack = torch.stack([parameters[n] for n in names])
            gradients = torch.stack([_gradient(parameters[n]) for n in names])
            reduced = (len(names), rows, 1) if rows >= cols else (len(names), 1, cols)
            m, v = self._state(
                (rows, cols), lambda s=stack, r=reduced: (torch.zeros_like(s), s.new_zeros(r))
            )
            rates = (self.hyper.matrix_lr * lr_multiplier, momentum, weight_decay)
            values = (torch.tensor(r, dtype=torch.float32) for r in rates)
            self.muon(stack, gradients, m, v, *values, self.model.compute_dtype)
            for name, matrix in zip(names, stack.unbind(), strict=True):
                parameters[name].copy_(matrix)

    def _state(self, key: object, make: Callable[[], tuple[Tensor, Tensor]]):
        if key not in self.state:
            self.state[key] = make()
        return self.state[key]


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _adamw_rates(name: str, hyper: Hyperparameters) -> tuple[float, tuple[float, float], float]:
    """(learning rate, betas, weight decay) of one AdamW parameter."""
    if name == "lm_head.weight":
        return hyper.unembedding_lr, (0.8, 0.96), 0.01
    if name == "transformer.wte.weight":
        return hyper.embedding_lr, (0.8, 0.995), 0.001
    if name.startswith("value_embeds."):
        return hyper.value_embedding_lr, (0.8, 0.995), 0.01
    if name == "resid_lambdas":
        return hyper.resid_lr, (0.8, 0.95), 0.05
    if name == "x0_lambdas":
        return hyper.x0_lr, (0.96, 0.95), 0.0
    return hyper.smear_lr, (0.8, 0.95), 0.0
