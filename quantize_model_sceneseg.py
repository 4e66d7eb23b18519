"""Fine-tune an FP32 network with fake quantization (QAT, PT2E with XNNPACKQuantizer) and write QAT checkpoints."""

import argparse
from pathlib import Path
from typing import Any

from common.cli.flags import (
    add_egolanes_argument,
    add_fuse_argument,
    add_input_size_argument,
    add_name_argument,
    add_weights_argument,
    make_parser,
    refuse_with_class_maps,
    refuse_with_images,
)
from common.cli.main import run
from common.cli.ptq import add_start_arguments, start_defaults
from common.cli.targets import add_codes_arguments, add_keep_float_argument, add_target_argument
from common.cli.training import OF_LABELS, add_recipe_argument, add_training_arguments, use_defaults
from common.cli.types import non_negative_float, non_negative_int
from common.training.settings import FOR_ONE_EPOCH, FROM_IMAGES, RECIPES, QatRunSettings, QatSettings


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "python quantize_model_sceneseg.py -s checkpoints -r data -fp32 best_model.pth -e 5", check_usage
    )
    add_training_arguments(parser, images=True)
    add_name_argument(parser, default=QatSettings.name)
    parser.add_argument("-fp32", "--fp32_model", type=Path, metavar="CKPT", help="FP32 weights")
    add_weights_argument(parser)
    add_start_arguments(parser)
    add_target_argument(parser, "the INT8 network is for")
    add_codes_arguments(parser)
    add_keep_float_argument(parser)
    add_input_size_argument(parser)
    add_fuse_argument(parser)
    parser.add_argument(
        "--freeze_batch_norm",
        type=non_negative_int,
        help="after this many epochs; default: 1; with -e 1, --images or --start_from ptq 0",
    )
    parser.add_argument(
        "--freeze_observers",
        type=non_negative_int,
        help="after this many epochs; default: 2, with --images or --start_from ptq 0",
    )
    parser.add_argument(
        "--num_calibration_samples",
        type=non_negative_int,
        help="training images for the last calibration; with --images or --start_from ptq one before the first step",
    )
    parser.add_argument(
        "--distill",
        type=non_negative_float,
        metavar="WEIGHT",
        help="also learn the FP32 network's logits; 0: do not; default: 0, with -e 1 1",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="CKPT",
        help="FP32 weights that teach with --distill or --images, as those before pruning; default: those of -fp32",
    )
    add_egolanes_argument(parser, "with --images")
    add_recipe_argument(parser)
    use_defaults(parser, QatRunSettings())
    of_others = dict.fromkeys([*RECIPES["original"], *FROM_IMAGES, "root"])  # see settings_of
    parser.set_defaults(**of_others)
    return parser


def check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where flags do not go together."""
    refuse_with_images(args, parser, OF_LABELS)
    if not args.images:
        refuse_with_class_maps(args, parser, ("egolanes_checkpoint",))
    start_defaults(args, parser)


def main(args: argparse.Namespace) -> None:
    from common.commands.quantize import quantize

    quantize(args, defaults_of(args))


def defaults_of(args: argparse.Namespace) -> dict[str, Any]:
    """What flags that are not given are by others that are."""
    return {
        **(FROM_IMAGES if args.images else FOR_ONE_EPOCH if args.epochs == 1 else {}),
        **start_defaults(args, get_args_parser()),
    }


if __name__ == "__main__":
    run(main, get_args_parser())
