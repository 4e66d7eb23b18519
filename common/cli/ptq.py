"""The flags that name methods of quantization without training."""

import argparse
from typing import Any

from common.cli.types import positive_float
from common.quantization.methods import ADAROUND, NAMES, START_METHODS, TIME_LIMIT, PtqMethods, methods_of
from common.training.settings import FROM_PTQ, PTQ, STARTS


def add_ptq_arguments(parser: argparse._ActionsContainer, when: str) -> None:
    """`--ptq` and `--ptq_seconds`, both None where they are not given."""
    parser.add_argument(
        "--ptq",
        nargs="+",
        choices=NAMES,
        metavar="METHOD",
        help=f"{when}methods of quantization without training, docs/int8.md: ranges of activations (histogram, "
        "the default, percentile or mse), mse_weights, equalize, correct_biases, adaround; or best",
    )
    parser.add_argument(
        "--ptq_seconds",
        type=positive_float,
        metavar="SECONDS",
        help=f"longest time of adaround; default: {TIME_LIMIT:g}",
    )


def ptq_methods(args: argparse.Namespace, parser: argparse.ArgumentParser) -> PtqMethods:
    """What the flags of `add_ptq_arguments` say; exit code 2 where they do not go together."""
    try:
        methods = methods_of(args.ptq or (), args.ptq_seconds or TIME_LIMIT)
    except ValueError as error:
        parser.error(f"argument --ptq: {error}")
    if args.ptq_seconds and ADAROUND not in methods.on_weights:
        parser.error("argument --ptq_seconds: limits adaround; add --ptq adaround")
    return methods


def add_start_arguments(parser: argparse._ActionsContainer) -> None:
    """`--start_from`, and which methods that takes."""
    parser.add_argument(
        "--start_from",
        choices=STARTS,
        help="weights of the first step: the FP32 network's, or what --ptq makes of them (without it "
        f"{' '.join(START_METHODS)})",
    )
    add_ptq_arguments(parser, "--start_from ptq with these ")


def start_defaults(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What other flags are by default for `--start_from`; exit code 2 where flags do not go together."""
    if args.start_from != PTQ:
        _refuse(args, parser, f"--start_from {PTQ}")
        return {}
    ptq_methods(args, parser)
    return FROM_PTQ


def _refuse(args: argparse.Namespace, parser: argparse.ArgumentParser, what: str) -> None:
    """Leave with exit code 2 where flags are given without `what` they are for."""
    for name in ("ptq", "ptq_seconds"):
        if getattr(args, name):
            parser.error(f"argument --{name}: is for {what}")


def methods_of_comparison(args: argparse.Namespace, parser: argparse.ArgumentParser) -> PtqMethods:
    """How the network of `--compare_ptq` is quantized; exit code 2 where flags do not go together."""
    if not args.compare_ptq:
        _refuse(args, parser, "--compare_ptq")
    return ptq_methods(args, parser)
