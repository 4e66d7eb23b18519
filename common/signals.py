"""Stopping a run in an orderly way: SIGTERM, as batch queues send it, and Ctrl-C."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # the shell's convention: 128 + the signal's number


class Interrupted(Exception):
    """A signal arrived in work that may be dropped."""


class StopRequest:
    """Takes note of the first SIGTERM or SIGINT, for the run to end when it suits; a second one ends it at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._droppable = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take note of signals within this context; the handlers from before are put back after it."""
        before = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in EXIT_CODES:
            signal.signal(each, signal.SIG_DFL)
        if self._droppable:
            raise Interrupted

    def unless_stopped(self, work: Callable[[], Result]) -> Result | None:
        """Do `work`, which may be broken off at any point; None when a signal arrived before or within it."""
        try:
            self._droppable = True
            return None if self.signal else work()
        except Interrupted:
            return None
        finally:
            self._droppable = False
