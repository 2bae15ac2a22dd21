"""Cost of deterministic algorithms: the same step with and without them."""

from __future__ import annotations

import torch

from tests.bench import training
from tests.bench.compare import Contender, interleave


def main() -> None:
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = training.ours(training.cpu_spec(8192, 4, 1), device, compile=False)
    # on the CPU every kernel of the step is deterministic: only torch's own checks cost time
    found = interleave(
        Contender(step, lambda: torch.use_deterministic_algorithms(False)),
        Contender(step, lambda: torch.use_deterministic_algorithms(True, warn_only=True)),
        warm_up=2,
        pairs=20,
    )
    print(found.line(f"a step without deterministic algorithms against one with, {device}"))


if __name__ == "__main__":
    main()
