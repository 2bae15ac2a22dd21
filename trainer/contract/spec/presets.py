"""Presets: partial specs, completed by the defaults."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "model": {
            "depth": 4,
            "aspect_ratio": 16,
            "head_dim": 16,
            "sequence_len": 128,
            "vocab_size": 2048,
        },
        "data": {"source": "builtin"},
        "horizon": {"steps": 200},
        "batch": {"tokens": 2048, "device_batch_size": 16},
        "evaluate": {
            "bpb_every": 50,
            "eval_tokens": 32_768,
            "sample_every": 100,
            "prompts": ["def main(", "import os\n", "class Node:"],
        },
        "checkpoint": {"every_steps": 50},
    },
    "rtx4070-d12": {
        "model": {"depth": 12, "sequence_len": 2048, "window_pattern": "L", "vocab_size": 32_768},
        "data": {"source": "hf", "name": "karpathy/climbmix-400b-shuffle", "max_shards": "auto"},
        "horizon": {"steps": 130_000},
        "batch": {"tokens": 65_536, "device_batch_size": 8},
        "schedule": {"warmdown_shape": "cosine"},
        "evaluate": {"bpb_every": 10_000, "core_every": "end", "sample_every": 10_000},
        "checkpoint": {"keep_every": 10_000},
    },
    "nanochat-d12": {
        "model": {"depth": 12, "window_pattern": "SSSL"},
        "data": {"source": "hf", "name": "karpathy/climbmix-400b-shuffle", "max_shards": "auto"},
        "horizon": {"data_param_ratio": 12},
        "evaluate": {"core_every": "end"},
    },
    "nanochat-d20": {
        "model": {"depth": 20, "window_pattern": "SSSL"},
        "data": {"source": "hf", "name": "karpathy/climbmix-400b-shuffle", "max_shards": "auto"},
        "horizon": {"data_param_ratio": 12},
        "evaluate": {"core_every": "end"},
    },
}
