"""Stopping a run in an orderly way: SIGTERM, as batch queues send it, Ctrl-C, and SIGHUP of a lost terminal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")
SIGHUP = getattr(signal, "SIGHUP", None)
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not on Windows
# the shell's convention: 128 + the signal's number
EXIT_CODES = {number: 128 + number for name in STOPPING if (number := getattr(signal, name, None))}


class Interrupted(Exception):
    """A signal arrived in work that may be dropped."""


class StopRequest:
    """Takes note of the first of these signals, for the run to end when it suits; a second one ends it at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._droppable = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take note of signals within this context; the handlers from before are put back after it.

        A SIGHUP that is ignored stays so: that is what nohup is for.
        """
        heard = [each for each in EXIT_CODES if each != SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in EXIT_CODES:
            if signal.getsignal(each) == self._handle:
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
