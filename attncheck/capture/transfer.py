"""Kept tensors on their way to where they are kept, while the model goes on."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

__all__ = ["Transfer"]

UNDER_WAY = 4
"""Copies that may be under way at once; each holds memory of the device that it leaves."""


class Transfer:
    """Moves tensors to a device; from CUDA to the CPU in the background.

    Those go into pinned memory, on a stream of their own, and hold numbers only after `finish`.

    Args:
        device: Where to; None: tensors stay where they are.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._under_way: deque[torch.cuda.Event] = deque()

    def moves(self, tensor: Tensor) -> bool:
        """Whether a tensor is to go to another device."""
        target = self._device
        if target is None or tensor.device == target:
            return False
        return tensor.device.type != target.type or target.index is not None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the tensor where it is kept."""
        if self._device is None or not self.moves(tensor):
            return tensor
        if not tensor.is_cuda or self._device.type != "cpu":
            return tensor.to(self._device)
        return self._in_background(tensor)

    def finish(self) -> None:
        """Wait for all copies."""
        for stream in self._streams.values():
            stream.synchronize()
        self._under_way.clear()

    def _in_background(self, tensor: Tensor) -> Tensor:
        device = tensor.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        tensor.record_stream(stream)  # its memory is not given to others before the copy is done
        self._under_way.append(done)
        if len(self._under_way) > UNDER_WAY:
            self._under_way.popleft().synchronize()
        return host
