"""A GPT trained by traind, in one file that needs only torch and safetensors.

    from modeling_traind import load
    model = load("folder")            # config.json and model.safetensors
    logits = model(tokens)            # (B, T) int64 -> (B, T, vocabulary) float32
    more = model.generate(tokens, 64) # greedy

`python modeling_traind.py "text"` continues a text with the tokenizer of this folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


def load(folder: str | Path, device: str = "cpu") -> TraindGPT:
    """The model of a folder, on `device`, computing in the dtype of its embedding table."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return TraindGPT(config, load_file(folder / "model.safetensors", device=device)).eval()


class TraindGPT(nn.Module):
    """Weights by name, forward pass by hand."""

    def __init__(self, config: dict, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.weights = weights
        self.dtype = weights["transformer.wte.weight"].dtype

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        config = self.config
        x = _norm(self._rows("transformer.wte.weight", tokens))
        if "smear_lambda" in self.weights:
            x = self._smear(x)
        x0 = kept = x
        for layer in range(config["num_hidden_layers"]):
            x = self.weights["resid_lambdas"][layer] * x + self.weights["x0_lambdas"][layer] * x0
            x = x + self._attention(layer, _norm(x), tokens)
            hidden = self._linear(f"transformer.h.{layer}.mlp.c_fc.weight", _norm(x))
            mlp_proj = f"transformer.h.{layer}.mlp.c_proj.weight"
            x = x + self._linear(mlp_proj, F.relu(hidden).square())
            if layer == config["num_hidden_layers"] // 2:
                kept = x
        x = _norm(x - self._weight("backout_lambda") * kept)
        logits = self._linear("lm_head.weight", x)[..., : config["vocab_size"]].float()
        cap = config["final_logit_softcapping"]
        return cap * torch.tanh(logits / cap)

    def _smear(self, x: Tensor) -> Tensor:
        """Each position with a gated part of the one before it."""
        here = x[:, 1:]
        gate = torch.sigmoid(self._linear("smear_gate.weight", here[..., :24]))
        smeared = here + self._weight("smear_lambda") * gate * x[:, :-1]
        return torch.cat([x[:, :1], smeared], dim=1)

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int) -> Tensor:
        """Greedy: `count` more tokens, always the most likely one."""
        for _ in range(count):
            best = self(tokens)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, best], dim=1)
        return tokens

    def _attention(self, layer: int, h: Tensor, tokens: Tensor) -> Tensor:
        config, name = self.config, f"transformer.h.{layer}.attn"
        rows, length, _ = h.shape
        size = (rows, length, -1, config["head_dim"])
        q, k, v = (self._linear(f"{name}.{n}.weight", h).view(size) for n in ("c_q", "c_k", "c_v"))
        if layer in config["value_embed_layers"]:
            gate = 3 * torch.sigmoid(self._linear(f"{name}.ve_gate.weight", h[..., :12]))
            v = v + gate.unsqueeze(-1) * self._rows(f"value_embeds.{layer}.weight", tokens).view(
                size
            )
        cos, sin = self._rotary(length, h.device)
        q, k = (_norm(_rotate(t, cos, sin)) * 1.2 for t in (q, k))
        groups = config["num_attention_heads"] // config["num_key_value_heads"]
        k, v = (t.repeat_interleave(groups, dim=2) for t in (k, v))
        position = torch.arange(length, device=h.device)
        back = position[:, None] - position[None, :]
        mask = (back >= 0) & (back <= config["attention_windows"][layer])
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self._linear(f"{name}.c_proj.weight", y.transpose(1, 2).reshape(rows, length, -1))

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        config = self.config
        j = torch.arange(0, config["head_dim"], 2, dtype=torch.float32, device=device)
        frequencies = 1.0 / (config["rope_theta"] ** (j / config["head_dim"]))
        angles = torch.outer(torch.arange(length, device=device).float(), frequencies)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return cos[None, :, None], sin[None, :, None]

    def _rows(self, name: str, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weights[name]).to(self.dtype)

    def _weight(self, name: str) -> Tensor:
        return self.weights[name].to(self.dtype)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(name))


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


def main() -> None:
    from tokenizers import Tokenizer

    folder = Path(__file__).parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = load(folder)
    ids = [model.config["bos_token_id"], *tokenizer.encode(" ".join(sys.argv[1:])).ids]
    more = model.generate(torch.tensor([ids]), 64)
    print(tokenizer.decode(more[0].tolist(), skip_special_tokens=True))


if __name__ == "__main__":
    main()
