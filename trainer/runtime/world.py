"""Ranks: the processes of one attempt, one per device, and their collective operations.

The only module that imports torch.distributed, and only with more than one rank: a `World` of one
needs no communication. torchrun starts the ranks and names them in the environment. Two groups:
words (gloo, on the host, waits for days: rank 0 may be writing a checkpoint) and tensors (NCCL
between GPUs, else gloo; a ten-minute timeout ends the attempt).

A sum is an all-to-all, a pairwise tree and an all-gather: the order of an all-reduce depends on
topology, sizes and library, this one on none of them, so that bits do not depend on the number of
ranks.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer.runtime.peers import LostPeer, Member

T = TypeVar("T")
BACKEND = "TRAIND_RANKS_BACKEND"  # "gloo": ranks may share a GPU, which NCCL refuses
WORDS_TIMEOUT = timedelta(days=30)
TENSORS_TIMEOUT_SECONDS = 600.0
TIMEOUT = "TRAIND_RANKS_TIMEOUT_SECONDS"  # another one, for tests
LEAVE_SECONDS = 10.0  # at the end of an attempt, for ranks that have already exited
# powers of two: the exchange splits them among ranks, whose parts stay aligned
CHUNK = 2**24  # elements summed at once: 67 MB of float32
LARGE = 2**19  # elements from which copying costs more than a separate message


class WorldMismatch(Exception):
    """The started ranks are not those of the order."""


class World:
    """A world of one rank: every call returns its argument."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.waited_seconds = 0.0
        self.waiting_since: float | None = None

    def use(self, device: torch.device) -> None:
        """Set the device of exchanged tensors; words need none."""

    @property
    def leads(self) -> bool:
        """True on rank 0, the only one that the daemon knows and that reads and writes files."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Broadcast rank 0's value (JSON) to all."""
        return value

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks: the same list everywhere."""
        return list(numbers)

    def any(self, flag: bool) -> bool:
        """True on all ranks if the flag is true on any rank."""
        return bool(self.all_reduce_max([int(flag)])[0])

    def all_gather(self, value: T) -> list[T]:
        """All-gather: every rank's value (JSON) in rank order, on all ranks."""
        return [value]

    def broadcast_block(self, block: Tensor) -> Tensor:
        """Broadcast rank 0's host tensor in place; others pass one of its shape and dtype."""
        return block

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Broadcast rank 0's tensor in place, by the tensors' group."""

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """All-reduce: replace each tensor by its sum over all ranks, by a fixed tree."""

    def all_gather_parts(self, whole: Tensor, sizes: Sequence[int]) -> Callable[[], None]:
        """All-gather the flat `whole`, of which each rank has its consecutive part of `sizes`. The
        returned function waits and fills it; until then it is unchanged, and no other exchange
        may start."""
        return lambda: None

    def collect(self, part: Tensor, sizes: Sequence[int]) -> Tensor | None:
        """Gather the flat parts of all ranks, concatenated, on rank 0; None on others."""
        return part

    def leave(self) -> None:
        """Leave in order, after the last exchange."""


def tree_sum(parts: list[Tensor]) -> Tensor:
    """Sum ((p0 + p1) + (p2 + p3)) …, in place in p0; the number of parts is a power of two."""
    while len(parts) > 1:
        parts = [a.add_(b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def join(ranks: int, device: str) -> World:
    """Join the other ranks of this attempt. Raises WorldMismatch, LostPeer."""
    if ranks == 1:
        return World()
    found = os.environ.get("WORLD_SIZE", "no torchrun")
    if found != str(ranks):
        raise WorldMismatch(f"the attempt is ordered for {ranks} ranks; started were: {found}")
    return _Ranks(device)


class _Ranks(World):
    def __init__(self, device: str) -> None:
        super().__init__()
        import torch.distributed as dist

        self._dist: Any = dist
        seconds = float(os.environ.get(TIMEOUT, TENSORS_TIMEOUT_SECONDS))
        self._timeout = timedelta(seconds=seconds)
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # one machine: nothing listens beyond it
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with self._waiting():
            dist.init_process_group("gloo", timeout=self._timeout)
            self._words: Any = dist.new_group(backend="gloo", timeout=WORDS_TIMEOUT)
        self._tensors: Any = dist.group.WORLD
        self._on_host = True
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        found = self.all_gather(
            {"host": socket.gethostname(), "device": device, "pid": os.getpid()}
        )
        self.members = [Member(rank=rank, **one) for rank, one in enumerate(found)]

    def use(self, device: torch.device) -> None:
        if device.type == "cuda" and os.environ.get(BACKEND, "nccl") == "nccl":
            with self._waiting():
                self._tensors = self._dist.new_group(backend="nccl", timeout=self._timeout)
            self._on_host = False

    # --- words -----------------------------------------------------------------------------------

    def broadcast(self, value: T) -> T:
        content = json.dumps(value).encode() if self.leads else b""
        size = torch.tensor([len(content)])
        with self._waiting():
            self._dist.broadcast(size, 0, group=self._words)
            text = torch.zeros(int(size), dtype=torch.uint8)
            if self.leads:
                text.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            self._dist.broadcast(text, 0, group=self._words)
        return value if self.leads else json.loads(text.numpy().tobytes())

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        own = torch.tensor(numbers, dtype=torch.int64)
        every = own.new_empty(self.size, len(own))  # gathered: half the messages of a reduction
        with self._waiting():  # on the group, like `deal`: torch's wrappers cost 10 %
            self._words.allgather(list(every), own).wait()
        return [max(column) for column in zip(*every.tolist(), strict=True)]

    def all_gather(self, value: T) -> list[T]:
        content = json.dumps(value).encode()
        longest = self.all_reduce_max([len(content)])[0]
        own = torch.frombuffer(bytearray(content.ljust(longest)), dtype=torch.uint8)
        found = [torch.zeros_like(own) for _ in range(self.size)]
        with self._waiting():
            self._dist.all_gather(found, own, group=self._words)
        return [json.loads(text.numpy().tobytes()) for text in found]

    def broadcast_block(self, block: Tensor) -> Tensor:
        with self._waiting():  # as bytes: gloo does not support every dtype
            self._words.broadcast(block.view(torch.uint8), 0).wait()
        return block

    # --- tensors ---------------------------------------------------------------------------------

    def broadcast_tensor(self, tensor: Tensor) -> None:
        raw = tensor.view(-1).view(torch.uint8)  # gloo does not support every dtype
        moved = self._moved(raw)
        with self._waiting():
            self._dist.broadcast(moved, 0, group=self._tensors)
        if moved is not raw:
            raw.copy_(moved)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum large tensors in place, small ones and remainders together in one buffer."""
        tails = []
        for tensor in tensors:
            flat = tensor.view(-1)
            whole = flat.numel() // self.size * self.size if flat.numel() >= LARGE else 0
            for piece in flat[:whole].split(CHUNK) if whole else ():
                self._sum_piece(piece)
            tails.append(flat[whole:])
        together = _padded(tails, self.size)
        for piece in together.split(CHUNK) if len(together) else ():
            self._sum_piece(piece)
        sizes = [len(tail) for tail in tails]
        for tail, at in zip(tails, _starts(sizes), strict=True):
            tail.copy_(together[at : at + len(tail)])

    def _sum_piece(self, flat: Tensor) -> None:
        own = self._moved(flat)
        parts = torch.empty_like(own)
        with self._waiting():
            self._dist.all_to_all_single(parts, own, group=self._tensors)
        summed = tree_sum(list(parts.view(self.size, -1)))
        self._gather_into(own, summed, self._tensors)
        if own is not flat:
            flat.copy_(own)

    def all_gather_parts(self, whole: Tensor, sizes: Sequence[int]) -> Callable[[], None]:
        begin = sum(sizes[: self.rank])
        own = whole[begin : begin + sizes[self.rank]]
        found, work = self._send_padded(own, sizes)

        def finish() -> None:
            with self._waiting():
                work.wait()
            for part, size, at in zip(found, sizes, _starts(sizes), strict=True):
                if at != begin:
                    whole[at : at + size].copy_(part[:size])

        return finish

    def collect(self, part: Tensor, sizes: Sequence[int]) -> Tensor | None:
        found, work = self._send_padded(part, sizes)
        with self._waiting():
            work.wait()
        if not self.leads:
            return None
        return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])

    def _send_padded(self, own: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Any]:
        """All-gather (ranks, longest): parts padded to the longest; and the work to wait for."""
        longest = max(sizes)
        padded = self._moved(own)
        if len(own) < longest:
            padded = torch.cat([padded, padded.new_zeros(longest - len(own))])
        found = padded.new_empty(self.size * longest)
        return found.view(self.size, longest), self._gather_into(
            found, padded, self._tensors, async_op=True
        )

    def _gather_into(
        self, whole: Tensor, own: Tensor, group: Any, *, async_op: bool = False
    ) -> Any:
        # torch 2.13 renames this function and deprecates the only name in 2.11
        gather = getattr(self._dist, "all_gather_single", self._dist.all_gather_into_tensor)
        with self._waiting():
            return gather(whole, own, group=group, async_op=async_op)

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the backend's device: gloo works on the host."""
        return tensor.cpu() if self._on_host else tensor

    # --- ends ------------------------------------------------------------------------------------

    def leave(self) -> None:
        deadline = time.monotonic() + LEAVE_SECONDS
        with suppress(RuntimeError):  # the run has ended successfully even if a rank is gone
            work = self._dist.barrier(group=self._words, async_op=True)
            while not work.is_completed() and time.monotonic() < deadline:
                time.sleep(0.005)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the waiting time, and convert errors of the exchange to LostPeer."""
        began, self.waiting_since = time.perf_counter(), time.monotonic()
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise LostPeer(" ".join(str(error).split())[:500], self.members) from error
        finally:
            self.waiting_since = None
            self.waited_seconds += time.perf_counter() - began


def _padded(flats: Sequence[Tensor], multiple: int) -> Tensor:
    """The tensors concatenated, padded with zeros to a multiple."""
    missing = -sum(map(len, flats)) % multiple
    return torch.cat([*flats, flats[0].new_zeros(missing)])


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
