"""Running a script: from the command line to an exit code, with one line for an error.

PyTorch and the other libraries take seconds to import, which `--help` and a wrong flag should not wait for. So nothing
of this package imports them, and a script imports its work, a module of `common.commands`, in `main`: when the flags
are known to be right.
"""

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from common.system.failures import explain
from common.system.signals import EXIT_CODES

EXIT_FAILURE = 1
EXIT_GATE = 3  # the work is done, and its result misses a limit that the command line sets
EXIT_INTERRUPTED = EXIT_CODES[signal.SIGINT]
EXIT_STOPPED = {number: code for number, code in EXIT_CODES.items() if number != signal.SIGINT}


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line, run `main`, and leave with an exit code: 0 done, 1 failed, 2 usage,
    130, 143 or 129 after Ctrl-C, SIGTERM or a lost terminal (SIGHUP).

    A training run that a signal stopped saves its checkpoint and leaves by itself, with the same codes.
    """
    for number in EXIT_STOPPED:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup and shells have some ignored
            signal.signal(number, _stop)
    # left outside of the handlers: an exception holds the frames of `main`, and with them data workers that should end
    if code := _exit_code(main, parser):
        sys.exit(code)


def end_children() -> None:
    """End the data workers of a loader that failed while it started them: they ignore signals, and one would wait."""
    children = multiprocessing.active_children()
    if children and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch raises an error for every worker that dies
    for child in children:
        child.kill()


class Stopped(BaseException):
    """A signal that ends a script, on its way through what has to be cleared away."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = signal.Signals(number)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _exit_code(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> int:
    args = argparse.Namespace(debug=False)
    try:
        args = parser.parse_args()
        setup_logging(args.debug)
        from common.system.process import computing, silence_libraries

        if not args.debug:
            silence_libraries()
        with computing(args.device, args.threads):
            main(args)
        _flush()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, args.debug)
    except Stopped as stopped:
        return _fail(f"stopped by {stopped.number.name}", EXIT_STOPPED[stopped.number], args.debug)
    except Exception as error:  # noqa: BLE001 - the last frame of a script: a user gets one line, --debug the rest
        return _fail(explain(error, vars(args)), EXIT_FAILURE, args.debug)
    return 0


def _flush() -> None:
    """Bring what was printed to where it goes, while a failure can still be told."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    else:
        sys.unraisablehook = lambda _: None  # what half-made objects print while they are taken down
    print(f"error: {message}", file=sys.stderr)
    end_children()
    try:
        _flush()
    except OSError:  # the interpreter would try once more, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def setup_logging(debug: bool) -> None:
    """Our progress goes to stderr; what libraries log below a warning is for their developers, shown with --debug."""
    level = logging.DEBUG if debug else logging.WARNING
    # force: executorch sets up a handler of its own where it has been imported
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    for package in ("common", "examples", "benchmarks", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
