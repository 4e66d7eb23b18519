"""The flags that have it chosen what stays in float."""

import argparse
from pathlib import Path

from common.benchmark.float_choice import FEWEST_EVALUATIONS, MAX_MIOU_DROP, MIN_SQNR, FloatLimit
from common.cli.benchmark import LIMITS
from common.cli.flags import add_dataset_arguments
from common.cli.types import positive_int
from common.runtimes.targets import TARGETS

EVALUATIONS = 40
CHOICE = ("auto_float", "max_evaluations", MAX_MIOU_DROP, MIN_SQNR)
DATA = ("dataset_root", "datasets", "labels", "workers", "skip_bad")  # of a conversion, which else takes no labels


def add_auto_float_arguments(parser: argparse._ActionsContainer, images: str) -> None:
    """`--auto_float` and `--max_evaluations`; `images` says of which the choice is made."""
    parser.add_argument(
        "--auto_float",
        action="store_true",
        help="choose the fewest blocks in float with which INT8 keeps --max_miou_drop (masks) or --min_sqnr_db (images "
        f"without labels) against the network in float: one half of {images} chooses, the other checks",
    )
    parser.add_argument(
        "--max_evaluations",
        type=positive_int,
        help=f"--auto_float: most measurements of the accuracy of a candidate; default: {EVALUATIONS}",
    )


def add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    """The choice of a conversion, with its limits and its labelled images."""
    group = parser.add_argument_group("choice", "of what stays in float, with --int8")
    add_auto_float_arguments(group, "the images")
    texts = {
        MAX_MIOU_DROP: "largest loss of mIoU against FP32, for example 0.005; takes --dataset_root",
        MIN_SQNR: "least SQNR of every output against FP32, dB; on images of --calibration_data that do not calibrate",
    }
    for name, text in texts.items():
        group.add_argument(f"--{name}", type=LIMITS[name][0], metavar="X", help=f"--auto_float: {text}")
    group.add_argument(
        "--dataset_root",
        type=Path,
        metavar="DIR",
        help="--auto_float: data root of images with masks, of which the validation images choose and check",
    )
    add_dataset_arguments(parser)


def float_limit(args: argparse.Namespace, target: str, parser: argparse.ArgumentParser) -> FloatLimit | None:
    """The limit of the choice, None without `--auto_float`; exit code 2 where flags do not go together."""
    if not args.auto_float:
        if args.max_evaluations is not None:
            parser.error("argument --max_evaluations: is for --auto_float")
        return None
    given = [name for name in (MAX_MIOU_DROP, MIN_SQNR) if getattr(args, name) is not None]
    if len(given) != 1:
        parser.error("argument --auto_float: takes a limit, --max_miou_drop or --min_sqnr_db")
    if given == [MAX_MIOU_DROP] and not args.dataset_root:
        parser.error("argument --max_miou_drop: takes masks of classes (--dataset_root)")
    if given == [MIN_SQNR] and args.dataset_root:
        parser.error("argument --min_sqnr_db: is for images without labels; with --dataset_root take --max_miou_drop")
    if TARGETS[target].opsets is None:
        parser.error(f"argument --auto_float: times ONNX files; --target {target} takes {TARGETS[target].suffix} files")
    if args.max_evaluations is not None and args.max_evaluations < FEWEST_EVALUATIONS:
        parser.error(f"argument --max_evaluations: {FEWEST_EVALUATIONS} are the fewest that can find anything")
    return FloatLimit(given[0], getattr(args, given[0]))
