"""Host buffers for checkpoint snapshots: one flat block, pinned for a GPU if the host permits.

Copies to pinned memory are asynchronous. torch's allocator of pinned memory rounds each tensor up
to a power of two (2.8 GB for the 2.0 of depth 12); here the block has the exact size and is
registered with the driver. A host may refuse: WSL and small machines limit pinned memory. Then the
block stays pageable, and the step waits for a copy.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.contract import units

ALIGNMENT = 512  # bytes
BufferLayout = dict[str, tuple[torch.Size, torch.dtype]]


class HostBuffers:
    """One host buffer for each tensor of a snapshot, under the same names.

    refused: why the memory is not pinned; None if it is or need not be.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._layout = layout(tensors)
        self._device = device
        self.refused: str | None = None
        self._buffers: dict[str, Tensor] = {}
        # pinning touches every page, half a second for 2 GB: not in the training thread
        self._thread = threading.Thread(target=self._allocate, name="checkpoint-buffers")
        self._thread.start()

    def fit(self, tensors: Mapping[str, Tensor]) -> bool:
        """True if the buffers match these tensors in names, shapes and dtypes."""
        return layout(tensors) == self._layout

    def take(self) -> dict[str, Tensor]:
        """The buffers by name. Waits until they are allocated."""
        self._thread.join()
        return self._buffers

    def _allocate(self) -> None:
        sizes = {name: s.numel() * d.itemsize for name, (s, d) in self._layout.items()}
        total = sum(map(_aligned, sizes.values()))
        if self._device.type == "cuda":
            block = self._pinned(total)
        else:
            block = torch.empty(total, dtype=torch.uint8)
        at = 0
        for name, (shape, dtype) in self._layout.items():
            piece = block[at : at + sizes[name]]
            self._buffers[name] = piece.view(dtype).view(shape)
            at += _aligned(sizes[name])

    def _pinned(self, total: int) -> Tensor:
        """Allocate a block and pin it with the driver. A CUDA error stays in this thread."""
        memory = mmap.mmap(-1, max(total, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block = torch.frombuffer(memory, dtype=torch.uint8)
        torch.cuda.set_device(self._device)
        runtime = torch.cuda.cudart()
        assert runtime is not None
        status = int(runtime.cudaHostRegister(block.data_ptr(), len(memory), 0))
        if status:
            self.refused = f"{units.num_bytes(total)} cannot be pinned (CUDA error {status})"
        else:
            free = weakref.finalize(self, runtime.cudaHostUnregister, block.data_ptr())
            free.atexit = False  # the driver unregisters it when the process exits
        return block


def layout(tensors: Mapping[str, Tensor]) -> BufferLayout:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
