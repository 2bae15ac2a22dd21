"""One file from a module and what it imports: complete and in order, or an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainer.interop import single_file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes modules of a program named `own`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(single_file, "PACKAGE", "own")
    (tmp_path / "own").mkdir()

    def write(**modules: str) -> None:
        for name, text in {"__init__": "", **modules}.items():
            (tmp_path / "own" / f"{name}.py").write_text(text)

    yield write
    for name in [n for n in sys.modules if n == "own" or n.startswith("own.")]:
        del sys.modules[name]


def test_what_is_needed_comes_first_and_once(package) -> None:
    package(
        base='"""Base."""\nimport math\n\nHALF = math.pi / 2\n',
        left="from own.base import HALF\n\n\ndef left():\n    return HALF\n",
        right="from math import pi\n\nfrom own.base import HALF\n\nRIGHT: float = pi - HALF\n",
        main='"""Main."""\nfrom __future__ import annotations\nimport math\n'
        "from own.left import left\nfrom own.right import (\n    RIGHT,\n)\n\n"
        "BOTH = left() + RIGHT\n",
    )
    text = single_file.assemble("own.main")
    assert "own." not in text
    assert text.startswith('"""Main."""\n\nfrom __future__ import annotations\n\nimport math\n')
    assert text.count("HALF = ") == text.count("import math") == 1
    scope: dict = {}
    exec(compile(text, "main.py", "exec"), scope)
    assert scope["BOTH"] == pytest.approx(3.141592653589793)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import own.base", "imports a whole module"),
        ("from own import base", "imports a whole module"),
        ("from own.base import HALF as half", "plain names"),
        ("from own.base import HALF\nHALF = 2", "both define HALF"),
    ],
)
def test_what_one_file_cannot_say_is_an_error(package, line: str, message: str) -> None:
    package(base="HALF = 1\n", main=f"{line}\n")
    with pytest.raises(ValueError, match=message):
        single_file.assemble("own.main")
