"""Losses of one interval, left on their device until they are needed."""

from __future__ import annotations

from typing import Any

#: Scalars are joined on the device when so many have come, so that long intervals stay small.
CHUNK = 256


class Losses:
    """Floats, and tensors that become floats when asked for: one device wait per interval."""

    def __init__(self) -> None:
        self._floats: list[float] = []
        self._chunks: list[Any] = []
        self._waiting: list[Any] = []

    def __len__(self) -> int:
        return len(self._floats) + len(self._waiting) + sum(len(c) for c in self._chunks)

    def add(self, loss: Any) -> None:
        """Take one loss: a number, or a tensor with one entry.

        Raises:
            TypeError: Neither.
            ValueError: A tensor with several entries.
        """
        if not hasattr(loss, "detach"):
            self._resolve_waiting()
            self._floats.append(float(loss))
            return
        if loss.numel() != 1:
            raise ValueError(f"a tensor of shape {tuple(loss.shape)}")
        # a copy: `loss /= n` after report() must not reach us
        scalar = loss.detach().reshape(()).clone()
        if self._waiting and (
            scalar.dtype != self._waiting[0].dtype or scalar.device != self._waiting[0].device
        ):
            self._resolve_waiting()
        self._waiting.append(scalar)
        if len(self._waiting) == CHUNK:
            self._join()

    def resolve(self) -> list[float]:
        """Every loss as a float, in order."""
        self._resolve_waiting()
        return self._floats

    def clear(self) -> None:
        """Begin a new interval."""
        self.__init__()  # type: ignore[misc]

    def restore(self, floats: list[float]) -> None:
        """Begin with losses that were saved."""
        self.clear()
        self._floats = [float(value) for value in floats]

    def _join(self) -> None:
        import torch

        if self._waiting:
            self._chunks.append(torch.stack(self._waiting))
            self._waiting = []

    def _resolve_waiting(self) -> None:
        if self._waiting or self._chunks:
            self._join()
            chunks, self._chunks = self._chunks, []
            for chunk in chunks:
                self._floats.extend(chunk.double().tolist())
