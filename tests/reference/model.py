"""Reference model: complete logits, dense gradients, no banks, no chunks (docs/recipe.md)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.contract.shape import ModelShape

SOFTCAP = 15.0


class Linear(nn.Linear):
    """Linear layer without bias; the float32 weight is cast to the dtype of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class PlainAttention(nn.Module):
    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.shape = shape
        last = layer == shape.n_layer - 1
        letter = shape.window_pattern[layer % len(shape.window_pattern)]
        short = shape.traits.short_window or math.ceil(shape.sequence_len / 4 / 128) * 128
        self.window = shape.sequence_len if last or letter == "L" else short
        self.c_q = Linear(shape.n_embd, shape.n_head * shape.head_dim)
        self.c_k = Linear(shape.n_embd, shape.n_kv_head * shape.head_dim)
        self.c_v = Linear(shape.n_embd, shape.n_kv_head * shape.head_dim)
        self.c_proj = Linear(shape.n_head * shape.head_dim, shape.n_embd)
        if layer % 2 == (shape.n_layer - 1) % 2:
            self.ve_gate = Linear(12, shape.n_kv_head)

    def forward(self, h_BTD: Tensor, value_rows: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, _ = h_BTD.shape
        s = self.shape
        q = self.c_q(h_BTD).view(B, T, s.n_head, s.head_dim)
        k = self.c_k(h_BTD).view(B, T, s.n_kv_head, s.head_dim)
        v = self.c_v(h_BTD).view(B, T, s.n_kv_head, s.head_dim)
        if value_rows is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(h_BTD[..., :12]))
            v = v + gate.unsqueeze(-1) * value_rows.view(B, T, s.n_kv_head, s.head_dim)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k = norm(q) * 1.2, norm(k) * 1.2
        groups = s.n_head // s.n_kv_head
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=visible(T, self.window, h_BTD.device),
        )
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1))


class PlainMLP(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.c_fc = Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(h_BTD)).square())


class PlainBlock(nn.Module):
    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.attn = PlainAttention(shape, layer)
        self.mlp = PlainMLP(shape)


class PlainGPT(nn.Module):
    """docs/recipe.md, Model, line by line. State names are nanochat's."""

    def __init__(self, shape: ModelShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.compute_dtype = shape, compute_dtype
        vocab, D = -(-shape.vocab_size // 64) * 64, shape.n_embd
        is_wide = compute_dtype == torch.float16 or shape.traits.tables == "float32"
        stored = torch.float32 if is_wide else compute_dtype
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, D, dtype=stored),
                "h": nn.ModuleList(PlainBlock(shape, i) for i in range(shape.n_layer)),
            }
        )
        self.value_embeds = nn.ModuleDict(
            {
                str(i): nn.Embedding(vocab, shape.n_kv_head * shape.head_dim, dtype=stored)
                for i in range(shape.n_layer)
                if i % 2 == (shape.n_layer - 1) % 2
            }
        )
        self.lm_head = Linear(D, vocab)
        self.resid_lambdas = nn.Parameter(torch.ones(shape.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(shape.n_layer))
        if shape.traits.smear:
            self.smear_gate = Linear(24, 1)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Softcapped float32 logits (B, T, vocab)."""
        cast = self.compute_dtype
        x = norm(self.transformer.wte(tokens_BT).to(cast))  # pyright: ignore[reportCallIssue]
        if self.shape.traits.smear:
            gate = self.smear_lambda.to(cast) * torch.sigmoid(self.smear_gate(x[:, 1:, :24]))
            x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
        x0, kept = x, x
        cos, sin = rotary(tokens_BT.shape[1], self.shape.head_dim, cast, tokens_BT.device)
        for i, block in enumerate(self.transformer.h):  # pyright: ignore[reportArgumentType]
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            rows = self.value_embeds[str(i)](tokens_BT).to(cast) if has_values(self, i) else None
            x = x + block.attn(norm(x), rows, cos, sin)
            x = x + block.mlp(norm(x))
            if i == self.shape.n_layer // 2:
                kept = x
        x = norm(x - self.backout_lambda.to(cast) * kept)
        logits = self.lm_head(x)[..., : self.shape.vocab_size].float()
        return SOFTCAP * torch.tanh(logits / SOFTCAP)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        logits = self(tokens_BT)
        return F.cross_entropy(
            logits.view(-1, logits.size(-1)),
            targets_BT.reshape(-1),
            ignore_index=-1,
            reduction=reduction,
        )


def has_values(model: PlainGPT, layer: int) -> bool:
    return str(layer) in model.value_embeds


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotary(length: int, head_dim: int, dtype: torch.dtype, device: torch.device):
    """RoPE: cos and sin, each (1, T, 1, head_dim / 2)."""
    j = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / (100_000 ** (j / head_dim))
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return angles.cos().to(dtype)[None, :, None, :], angles.sin().to(dtype)[None, :, None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.size(-1) // 2
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], dim=-1)


def visible(length: int, window: int, device: torch.device) -> Tensor:
    """Attention mask: mask[q, k] is true if key k is visible to query q."""
    position = torch.arange(length, device=device)
    back = position[:, None] - position[None, :]
    mask = back >= 0
    return mask & (back <= window)
