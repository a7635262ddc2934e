"""Losses on their way to the host: whether all are finite, found out without waiting for the device."""

from collections import deque

import torch
from torch import Tensor


class LossWatch:
    """The losses of the last iterations, copied to the host while the device goes on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._coming: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self._latest = torch.empty(0)
        self._broken: tuple[int, list[str]] | None = None

    def add(self, iteration: int, losses: dict[str, Tensor]) -> None:
        """Start to copy the losses of an iteration.

        Args:
            iteration: from 0.
            losses: scalars by name; the same names each time.
        """
        self.names = list(losses)
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        arrival = None
        if values.is_cuda:
            host = torch.empty(values.shape, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record()
        self._coming.append((iteration, values, arrival))

    def broken(self, wait: bool) -> tuple[int, list[str]] | None:
        """Find the first iteration with losses that are not finite.

        Args:
            wait: True: for what is still on its way. False: only what has arrived is looked at.
        Returns:
            iteration, and the names of those losses; None where none is known.
        """
        while self._coming:
            iteration, values, arrival = self._coming[0]
            if arrival is not None and not arrival.query():
                if not wait:
                    break
                arrival.synchronize()
            self._coming.popleft()
            self._latest = values
            if self._broken is None and not torch.isfinite(values).all():
                self._broken = (
                    iteration,
                    [name for name, value in zip(self.names, values, strict=True) if not value.isfinite()],
                )
        return self._broken

    def latest(self) -> Tensor:
        """The last iteration's losses; waits for them.

        Returns:
            [number of names] fp32 on the CPU, in the order of `names`.
        """
        self.broken(wait=True)
        return self._latest
