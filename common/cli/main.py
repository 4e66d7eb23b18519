"""Running a script: from the command line to an exit code, with one line for an error."""

import argparse
import logging
import multiprocessing
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType

import cv2
import numpy as np
import torch

from common.system.arithmetic import use_full_float32
from common.system.failures import explain
from common.system.gpus import gpus_hidden
from common.system.signals import EXIT_CODES
from common.training.precision import set_precision

EXIT_FAILURE = 1
EXIT_GATE = 3  # the work is done, and its result misses a limit that the command line sets
EXIT_INTERRUPTED = EXIT_CODES[signal.SIGINT]
EXIT_STOPPED = {number: code for number, code in EXIT_CODES.items() if number != signal.SIGINT}


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one. It computes in full float32 unless a training asks for less.

    Raises:
        ValueError: `cuda` was asked for and is not there; nothing falls back in silence.
    """
    available = name != "cpu" and torch.cuda.is_available()  # asked for the CPU, a GPU is not even looked for
    if name == "cuda" and not available:
        raise ValueError("--device cuda: PyTorch finds no CUDA device on this machine; use --device cpu or auto")
    device = torch.device("cuda" if available else "cpu")
    set_precision("fp32", device)  # PyTorch's own default for convolutions on CUDA is TF32
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
        use_full_float32()
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
        with gpus_hidden() if args.device == "cpu" else nullcontext():
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
    """Our progress goes to stderr; the notices of the libraries below are for their developers, shown with --debug."""
    level = logging.DEBUG if debug else logging.WARNING
    # force: executorch sets up a handler of its own when it is imported
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    for package in ("common", "examples", "benchmarks", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not debug:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what it warns of is raised, too
        warnings.simplefilter("ignore")
        for package in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export"):
            logging.getLogger(package).setLevel(logging.ERROR)
