"""The flags that name methods of quantization without training."""

import argparse

from common.cli.types import positive_float
from common.quantization.methods import ADAROUND, NAMES, TIME_LIMIT, PtqMethods, methods_of


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


def methods_of_comparison(args: argparse.Namespace, parser: argparse.ArgumentParser) -> PtqMethods:
    """How the network of `--compare_ptq` is quantized; exit code 2 where flags do not go together."""
    for name in () if args.compare_ptq else ("ptq", "ptq_seconds"):
        if getattr(args, name):
            parser.error(f"argument --{name}: is for --compare_ptq")
    return ptq_methods(args, parser)
