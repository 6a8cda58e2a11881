"""How long a connection may be silent before that is remarkable, judged by its own recent past.

Pure: fed with the passing of time. Must never take time in which nobody listened for silence of the exchange.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Rhythm"]

_FACTOR: Final = 4.0
"""Silences come in all lengths: one that is four times the longest of the last two minutes is none of them."""
_WINDOW: Final = 60.0
_LEARNING: Final = 8
"""Ticks with a message before the estimate counts."""
_STEP: Final = 1.0
"""A longer step between two ticks was this process's own (frozen, or a busy machine)."""


class Rhythm:
    """The typical spacing of one connection's messages; ``tick`` says when the silence is out of it.

    ``floor`` and ``ceiling``: seconds of silence that are never, and always, remarkable.
    """

    def __init__(self, floor: float, ceiling: float, like: Rhythm | None = None) -> None:
        self._floor, self._ceiling = floor, ceiling
        self.silence = 0.0
        self._longest = self._before = 0.0
        self._heard = 0
        if like is not None:
            self._longest, self._before, self._heard = like._longest, like._before, like._heard
        self._in_window = 0.0

    @property
    def limit(self) -> float:
        """Seconds of silence from which on it is remarkable."""
        if self._heard < _LEARNING:
            return self._ceiling
        return min(self._ceiling, max(self._floor, _FACTOR * max(self._longest, self._before)))

    def tick(self, seconds: float, heard: bool) -> bool:
        """So much time has passed, with or without a message. Returns whether the silence is remarkable."""
        seconds = min(seconds, _STEP)
        self.silence += seconds
        if not heard:
            return self.silence > self.limit
        self._longest = max(self._longest, self.silence)
        self._heard += 1
        self._in_window += self.silence
        self.silence = 0.0
        if self._in_window > _WINDOW:
            self._before, self._longest, self._in_window = self._longest, 0.0, 0.0
        return False

    def legitimate(self) -> None:
        """The silence so far was found to be the market's: it counts as heard."""
        self.tick(0.0, True)
