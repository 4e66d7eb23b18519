"""The flags that say which runtime a file is for, how it is written, and that a file is checked."""

import argparse
from pathlib import Path
from typing import Any

from common.cli.camera import CAMERA_FLAGS
from common.cli.types import positive_int
from common.export.options import NEWEST_OPSET, OLDEST_HALF, OLDEST_OPSET, OPSET
from common.runtimes.targets import DEFAULT_TARGET, TARGETS

BESIDE_CHECK = ("help", "list", "check", "target", "device", "seed", "threads", "debug")


class CheckFile(argparse.Action):
    """`--check FILE`: beside it the flags of a conversion are not required, and not allowed."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: object) -> None:
        setattr(namespace, self.dest, value)
        for action in parser._actions:
            action.required = False


def add_target_argument(
    parser: argparse.ArgumentParser, what: str, default: str = f"default: {DEFAULT_TARGET}"
) -> None:
    """`--target`, one of TARGETS; None where it is not given."""
    parser.add_argument("--target", choices=tuple(TARGETS), help=f"runtime that {what}; {default}")


def add_codes_arguments(parser: argparse._ActionsContainer, what: str = "") -> None:
    """`--per_channel`, None where it is not given, and `--reduced_range`."""
    parser.add_argument(
        "--per_channel",
        action=argparse.BooleanOptionalAction,
        help=f"{what}one weight scale per output channel, not per tensor; default: the target's, which is tensorrt's",
    )
    parser.add_argument(
        "--reduced_range",
        action="store_true",
        help=f"{what}codes of weights from -64 to 63: sums that processors without an int8 dot product do not saturate",
    )


def add_keep_float_argument(parser: argparse._ActionsContainer, when: str = "") -> None:
    """`--keep_float`, None where it is not given."""
    parser.add_argument(
        "--keep_float",
        action="append",
        metavar="PATTERN",
        help=f"{when}do not quantize modules of this name, as head or 'neck.stages.*.refine'; may be repeated",
    )


def add_optimized_argument(parser: argparse.ArgumentParser, when: str = "") -> None:
    """`--optimized`."""
    parser.add_argument(
        "--optimized",
        action="store_true",
        help=f"{when}integer operators in the place of pairs, for hosts without ONNX Runtime's graph optimisation",
    )


def add_opset_argument(parser: argparse.ArgumentParser) -> None:
    """`--opset`, which the exporter can write."""
    parser.add_argument(
        "--opset",
        type=opset,
        help=f"ONNX operator set, {OLDEST_OPSET} to {NEWEST_OPSET}; default: {OPSET}, for ONNX Runtime 18 where there "
        "are average pools",
    )


def opset(text: str) -> int:
    """An argparse type: an operator set that the exporter writes."""
    number = positive_int(text)
    if not OLDEST_OPSET <= number <= NEWEST_OPSET:
        raise argparse.ArgumentTypeError(f"{text!r} is not an operator set from {OLDEST_OPSET} to {NEWEST_OPSET}")
    return number


def batch_size(text: str) -> int | str:
    """An argparse type: a fixed batch size, or `dynamic`."""
    return text if text == "dynamic" else positive_int(text)


def require_writable(args: argparse.Namespace, target: str, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where flags of a file, of `add_camera_arguments` too, ask for no file of a target."""
    row, opset = TARGETS[target], args.opset or OPSET
    if row.opsets is None:
        for name in ("opset", "batch", *CAMERA_FLAGS):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"argument --{name}: is for ONNX files; --target {target} takes {row.suffix} files")
    elif not row.opsets[0] <= opset <= row.opsets[1]:
        parser.error(f"argument --opset: {row.title} reads {row.opsets[0]} to {row.opsets[1]}")
    if args.half and not row.takes_half:
        parser.error(f"argument --half: --target {target} computes in float32 what is not in int8")
    if args.optimized and not row.takes_optimized:
        parser.error(f"argument --optimized: writes ONNX Runtime's own operators, which {row.title} does not take")
    if args.half and opset < OLDEST_HALF:
        parser.error(f"argument --half: QuantizeLinear takes FP16 from --opset {OLDEST_HALF} on")


def add_check_argument(parser: argparse.ArgumentParser) -> None:
    """`--check FILE.onnx`, in the place of a conversion."""
    parser.add_argument(
        "--check",
        action=CheckFile,
        type=Path,
        metavar="FILE.onnx",
        help="instead: list the nodes of this ONNX file that break rules of --target",
    )


def refuse_beside_check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where flags of a conversion stand beside `--check`."""
    for action in parser._actions:
        if action.dest not in BESIDE_CHECK and getattr(args, action.dest) != action.default:
            parser.error(f"argument {'/'.join(action.option_strings)}: not allowed with argument --check")
