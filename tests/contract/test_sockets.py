"""A Unix socket under a path of any length."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from trainer.contract import sockets


@pytest.mark.parametrize("length", [1, 200])
def test_it_is_bound_and_reached_whatever_its_path(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("d" * length) / "serve.sock"
    path.parent.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with (
        closing(socket.socket(socket.AF_UNIX)) as listener,
        closing(socket.socket(socket.AF_UNIX)) as client,
    ):
        with sockets.address(path) as address:
            listener.bind(address)
        listener.listen()
        assert path.is_socket()
        with sockets.address(path) as address:
            client.connect(address)
        client.sendall(b"!")
        with closing(listener.accept()[0]) as accepted:
            assert accepted.recv(1) == b"!"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), sockets.address(tmp_path / ("d" * 200) / "x.sock"):
        pass
