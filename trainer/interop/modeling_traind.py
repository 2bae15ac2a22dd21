"""A GPT trained by traind, in one file that needs only torch and safetensors.

    from modeling_traind import load
    model = load("folder")            # config.json and model.safetensors
    logits = model(tokens)            # (B, T) int64 -> (B, T, vocabulary) float32
    more = model.generate(tokens, 64) # greedy, with a key-value cache

    cache = model.cache()             # or step by step:
    logits = model(tokens, cache)     # the tokens are appended to the cache
    logits = model(following, cache)  # and so are those that follow them

`python modeling_traind.py "text"` continues a text with the tokenizer of this folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.model.architecture import KVCache, causal, hidden, logits, rotary, trunk_weights
from trainer.model.names import LM_HEAD, WTE


def load(folder: str | Path, device: str = "cpu") -> TraindGPT:
    """The model of a folder, on `device`, computing in the dtype of its embedding table."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return TraindGPT(config, load_file(folder / "model.safetensors", device=device)).eval()


class TraindGPT(nn.Module):
    """A GPT. config: the content of config.json. state: tensors by name, which are not copied."""

    def __init__(self, config: dict, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config, self.windows = config, config["attention_windows"]
        self.dtype = state[WTE].dtype
        computed = {n: t.to(self.dtype) if t.dim() == 2 else t for n, t in state.items()}
        self.tables = {n: t for n, t in computed.items() if n == WTE or "value_embeds" in n}
        self.trunk = trunk_weights(computed)
        self.head = computed[LM_HEAD][: config["vocab_size"]]

    @torch.no_grad()
    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, vocabulary) float32 of whole rows, or of tokens after the cache."""
        if cache is None:
            positions, previous = torch.arange(tokens.size(1), device=tokens.device), None
            attends = [_causal(window) for window in self.windows]
        else:
            positions, previous = cache.positions(tokens), cache.previous(tokens)
            attends = cache.attends()
        rotation = rotary(positions, self.config["head_dim"], self.dtype)
        x = hidden(tokens, self.tables, self.trunk, rotation, attends, previous)
        if cache is not None:
            cache.advance(tokens)
        return logits(x, self.head)

    def cache(self) -> KVCache:
        """An empty key-value cache, for any number of sequences of one length."""
        return KVCache(self.windows)

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int) -> Tensor:
        """Greedy decoding: `count` more tokens, always the most likely one."""
        cache, following = self.cache(), tokens
        for _ in range(count):
            following = self(following, cache)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
        return tokens


def _causal(window: int):
    return lambda q, k, v: causal(q, k, v, window)


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
