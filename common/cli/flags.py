"""What the command lines of the scripts share: argument types, common flags, device, seeding, errors and exit codes."""

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
from pathlib import Path
from types import FrameType

import cv2
import numpy as np
import psutil
import torch

from common.networks.opening import ListNetworks
from common.system.failures import explain
from common.system.signals import EXIT_CODES

logger = logging.getLogger(__name__)

LARGEST_INT = 2**31 - 1  # what the libraries below take for a count or a seed
MOST_THREADS = 1024  # a runtime starts as many as it is told to
EXIT_FAILURE = 1
EXIT_GATE = 3  # the work is done, and its result misses a limit that the command line sets
EXIT_INTERRUPTED = EXIT_CODES[signal.SIGINT]
EXIT_STOPPED = {number: code for number, code in EXIT_CODES.items() if number != signal.SIGINT}


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the example's line breaks, show every default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False or action.required
        return action.help if hidden else super()._get_help_string(action)


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the script's docstring, an example to copy, and the flags that every script has."""
    parser = argparse.ArgumentParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where PyTorch computes")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of every random choice")
    parser.add_argument(
        "--threads", type=thread_count, default=psutil.cpu_count(logical=False) or 1, help="CPU threads of each runtime"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network, its weights and its input size; and the list of what there is."""
    parser.add_argument("-n", "--name", required=True, metavar="NETWORK", help="network, for example SceneSeg")
    parser.add_argument(
        "-p", "--model_checkpoint_path", required=True, type=Path, metavar="CKPT", help="its FP32 weights (.pth)"
    )
    add_input_size_argument(parser)
    add_fuse_argument(parser)
    parser.add_argument("--list", action=ListNetworks)


def add_input_size_argument(parser: argparse.ArgumentParser) -> None:
    """`--input_hw`: a checkpoint knows its input size, so that the flag is for another one."""
    parser.add_argument(
        "--input_hw", type=height_width, metavar="H,W", help="input size; default: the checkpoint's own"
    )


def add_fuse_argument(parser: argparse.ArgumentParser) -> None:
    """`--fuse`, on by default: the same numbers in less time, for a file that is 5 % larger."""
    parser.add_argument(
        "--fuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fuse each upsampling stage into one convolution (exact; SceneSeg: 37 %% fewer operations)",
    )


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """`--datasets` and `--workers`; the data root has another name in each of the original scripts."""
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="datasets below the root, also your own (ROOT/NAME/NAME/{images,gt_masks}); default: all that are found",
    )
    parser.add_argument("--workers", type=non_negative_int, default=2, help="processes that decode images")
    parser.add_argument(
        "--skip_bad", action="store_true", help="read every sample once first; leave bad ones out and list them"
    )


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks measure on, and how."""
    parser.add_argument(
        "--num_samples_per_dataset", type=positive_int, default=20, help="validation images scored per dataset"
    )
    parser.add_argument(
        "--warmup_runs",
        type=non_negative_int,
        default=3,
        help="least number of untimed runs; more follow while it gets faster; 0: none",
    )
    parser.add_argument("--timed_runs", type=positive_int, default=1, help="timed runs of each model on each image")
    parser.add_argument(
        "--visualizations_per_dataset", type=positive_int, default=2, help="pictures of each model per dataset"
    )
    parser.add_argument(
        "--thread_counts",
        nargs="+",
        type=thread_count,
        default=[],
        metavar="N",
        help="also measure the throughput with these numbers of threads",
    )
    parser.add_argument(
        "--pin",
        nargs="+",
        type=non_negative_int,
        metavar="CPU",
        help="keep the process on these processors (Linux); name as many as --threads",
    )


def plain_arguments(args: argparse.Namespace) -> dict[str, object]:
    """The flags as JSON and a checkpoint can hold them: paths become strings."""
    return {key: _plain(value) for key, value in vars(args).items()}


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def named_path(text: str) -> tuple[str, Path]:
    """An argparse type: "NAME=PATH" -> (name, path)."""
    name, _, path = text.partition("=")
    if not name.strip() or not path or not name.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH such as INT8=model.onnx")
    return name.strip(), Path(path)


def positive_int(text: str) -> int:
    """An argparse type: 1, 2, 3, ... LARGEST_INT."""
    return _checked(int, text, lambda value: 0 < value <= LARGEST_INT, f"a whole number from 1 to {LARGEST_INT}")


def non_negative_int(text: str) -> int:
    """An argparse type: 0, 1, 2, ... LARGEST_INT."""
    return _checked(int, text, lambda value: 0 <= value <= LARGEST_INT, f"a whole number from 0 to {LARGEST_INT}")


def thread_count(text: str) -> int:
    """An argparse type: 1, 2, 3, ... MOST_THREADS."""
    return _checked(int, text, lambda value: 0 < value <= MOST_THREADS, f"a whole number from 1 to {MOST_THREADS}")


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    return _checked(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def non_negative_float(text: str) -> float:
    """An argparse type: a finite number, 0 or more."""
    return _checked(float, text, lambda value: 0 <= value < float("inf"), "a number, 0 or more")


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    return _checked(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def decay(text: str) -> float:
    """An argparse type: a number from 0 up to, but not including, 1."""
    return _checked(float, text, lambda value: 0 <= value < 1, "a number, 0 or more and below 1")


def height_width(text: str) -> tuple[int, int]:
    """An argparse type: "320,640" -> (320, 640)."""
    try:
        height, width = (int(part) for part in text.split(","))
    except ValueError:
        height = width = 0
    if height <= 0 or width <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHT,WIDTH such as 320,640")
    return height, width


def _checked(convert: Callable, text: str, accept: Callable, wanted: str):
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one.

    Raises:
        ValueError: `cuda` was asked for and is not there; nothing falls back in silence.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: PyTorch finds no CUDA device on this machine; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


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
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
        main(args)
        _flush()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, args.debug)
    except Stopped as stopped:
        return _fail(f"stopped by {stopped.number.name}", EXIT_STOPPED[stopped.number], args.debug)
    except Exception as error:  # noqa: BLE001 - the last frame of a script: a user gets one line, --debug the rest
        return _fail(explain(error, args), EXIT_FAILURE, args.debug)
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
