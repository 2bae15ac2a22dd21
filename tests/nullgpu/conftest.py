"""`on_card`: fixture that calls a function in a separate process, on a null GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nullgpu import environment


@pytest.fixture(scope="session")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("holders")


@pytest.fixture(scope="session")
def on_card(tmp_path_factory: pytest.TempPathFactory, holders: Path) -> Callable[..., Any]:
    """on_card(card, function, seconds=300, variables={…}, **arguments): the function's result.

    The function is defined at the top level of a module; its arguments and result are JSON.
    """

    def call(
        card: str,
        function: Callable[..., Any],
        *,
        seconds: float = 300,
        variables: dict[str, str] | None = None,
        **arguments: Any,
    ) -> Any:
        folder = tmp_path_factory.mktemp(function.__name__)
        place = f"{function.__module__}:{function.__qualname__}"
        out, log = folder / "result.json", folder / "log"
        command = [str(environment.python()), "-m", "tests.nullgpu.child", place, str(out)]
        with log.open("w") as file:
            child = subprocess.Popen(
                [*command, json.dumps(arguments)],
                env=environment.variables(card, holders, TMPDIR=str(folder), **(variables or {})),
                cwd=environment.ROOT,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            status: Any = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"nothing within {seconds} s"
        finally:  # the wait ended by its own timeout or the test's
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        assert status == 0, f"{place} on {card} ends with {status}:\n{log.read_text()[-6000:]}"
        return json.loads(out.read_text())

    return call
