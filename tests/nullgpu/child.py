"""Call a function on this process' card: `python -m tests.nullgpu.child MODULE:NAME OUT ARGS`.

ARGS: its keyword arguments as JSON. OUT: the file for its result, as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(place: str, out: str, arguments: str) -> None:
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)
    Path(out).write_text(json.dumps(function(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
