"""Hugging Face export: config.json, model.safetensors, tokenizer.json, modeling_traind.py.

`transformers` has no class for this architecture, so the folder contains its own small model file.
It is assembled from the source of `trainer/model/architecture.py` and needs only torch and
safetensors. `python modeling_traind.py "Once upon a time"` continues a text if `tokenizers` is
installed; README.md in the folder explains how to load it from code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trainer.contract.shape import ModelShape
from trainer.data.tokenizer import Tokenizer
from trainer.interop import single_file
from trainer.model import parameters
from trainer.model.architecture import ROTARY_BASE, SOFTCAP

MODELING = "modeling_traind.py"

README = """\
# {name}

A GPT trained by traind: {layers} layers, width {width}, {heads} heads, context {context} tokens,
vocabulary {vocab}.

```python
from modeling_traind import load
model = load(".")                     # a torch.nn.Module
logits = model(tokens)                # (B, T) int64 -> (B, T, vocabulary) float32
```

`python modeling_traind.py "some text"` continues a text (needs the package `tokenizers`). Every
document of the training text began with `<|bos|>`; so should a prompt.
"""


def export_huggingface(
    directory: Path | str,
    model_state: Mapping[str, Tensor],
    shape: ModelShape,
    tokenizer: Tokenizer,
    *,
    name: str = "traind",
) -> list[Path]:
    """Write the folder and return its files. The tensors keep their names and dtypes."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: t.detach().to("cpu").contiguous().clone() for n, t in model_state.items()}
    written = {
        "config.json": json.dumps(config_for(shape, tokenizer, weights), indent=2),
        "generation_config.json": json.dumps(_special_ids(tokenizer), indent=2),
        "tokenizer.json": json.dumps(tokenizer_json(tokenizer), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(_tokenizer_config(tokenizer, shape), indent=2),
        MODELING: single_file.assemble("trainer.interop.modeling_traind"),
        "README.md": README.format(
            name=name,
            layers=shape.n_layer,
            width=shape.n_embd,
            heads=shape.n_head,
            context=shape.sequence_len,
            vocab=shape.vocab_size,
        ),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in written.items():
        (folder / file).write_text(content, encoding="utf-8")
    return [folder / file for file in ("model.safetensors", *written)]


def config_for(
    shape: ModelShape, tokenizer: Tokenizer, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Content of config.json: the fields that `modeling_traind.py` and other programs need."""
    dtype = str(weights[parameters.WTE].dtype).removeprefix("torch.")
    return {
        "architectures": ["TraindGPT"],
        "model_type": "traind",
        "num_hidden_layers": shape.n_layer,
        "hidden_size": shape.n_embd,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_kv_head,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.sequence_len,
        "vocab_size": shape.vocab_size,
        "padded_vocab_size": shape.padded_vocab_size,
        "attention_windows": list(shape.windows),
        "value_embed_layers": list(shape.value_embed_layers),
        "rope_theta": ROTARY_BASE,
        "final_logit_softcapping": SOFTCAP,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        **_special_ids(tokenizer),
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of tokenizer.json: byte-level BPE, with traind's ranks written as merges.

    tiktoken merges the pair whose union has the lowest rank; `tokenizers` needs the pairs. A
    token's pair is the result of merging its bytes with all lower ranks.
    """
    letters = _byte_letters()
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens)}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [
        [spell(part) for part in parts]
        for rank, token in enumerate(tokenizer.tokens)
        if len(token) > 1 and len(parts := _parts(token, ranks, rank)) == 2
    ]
    special = [
        {"id": tokenizer.special_id(name), "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for name in tokenizer.special_tokens
    ]
    pattern = {"Regex": tokenizer.pattern}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level | {"use_regex": False}],
        },
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def _parts(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """Split a token's bytes by every merge of a rank below its own: two parts."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(parts[i] + parts[i + 1], below) for i in range(len(parts) - 1)]
        lowest = min(pairs)
        if lowest >= below:
            break
        at = pairs.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, used by the `tokenizers` format."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(moved)}
    return [letters[byte] for byte in range(256)]


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.bos_id}


def _tokenizer_config(tokenizer: Tokenizer, shape: ModelShape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.special_tokens[0],
        "eos_token": tokenizer.special_tokens[0],
        "model_max_length": shape.sequence_len,
        "clean_up_tokenization_spaces": False,
    }
