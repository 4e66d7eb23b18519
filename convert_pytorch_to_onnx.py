"""Convert a network and its checkpoint to an ONNX file, FP32, FP16 or INT8, that is checked against PyTorch."""

import argparse
from pathlib import Path

from common.benchmark.float_choice import MAX_MIOU_DROP, MIN_SQNR
from common.cli.auto_float import DATA, add_conversion_arguments, float_limit
from common.cli.camera import add_camera_arguments
from common.cli.flags import add_egolanes_argument, add_network_arguments, make_parser
from common.cli.main import run
from common.cli.ptq import add_ptq_arguments, ptq_methods
from common.cli.targets import (
    add_check_argument,
    add_codes_arguments,
    add_keep_float_argument,
    add_opset_argument,
    add_optimized_argument,
    add_target_argument,
    batch_size,
    refuse_beside_check,
    require_writable,
)
from common.cli.types import positive_int
from common.runtimes.targets import DEFAULT_TARGET

# what is of --int8 alone, and of --auto_float
OF_INT8 = ("target", "per_channel", "reduced_range", "optimized", "ptq", "ptq_seconds", "keep_float", "auto_float")
LIMITS_OF_CHOICE = (MAX_MIOU_DROP, MIN_SQNR, "max_evaluations")


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "python convert_pytorch_to_onnx.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.onnx", check_usage
    )
    add_network_arguments(parser)
    parser.add_argument(
        "-o",
        "--onnx_model_path",
        required=True,
        type=Path,
        metavar="OUT.onnx",
        help="file to write; for executorch .pte",
    )
    parser.add_argument(
        "--batch", type=batch_size, metavar="N|dynamic", help="batch axis; default: dynamic, for openvino 1"
    )
    add_opset_argument(parser)
    parser.add_argument(
        "--half",
        action="store_true",
        help="FP16 inside, with --int8 where it is not int8; input and output stay FP32",
    )
    parser.add_argument("--int8", action="store_true", help="INT8 without training, from --calibration_data")
    add_target_argument(parser, "--int8 or --check is for")
    parser.add_argument("--calibration_data", type=Path, metavar="DIR", help="images for --int8, however deep")
    parser.add_argument("--num_calibration_samples", type=positive_int, default=64, help="images for the calibration")
    add_codes_arguments(parser, "--int8 with ")
    add_ptq_arguments(parser, "--int8 with these ")
    add_keep_float_argument(parser, "--int8: ")
    add_conversion_arguments(parser)
    add_egolanes_argument(parser, "with --int8")
    add_optimized_argument(parser, "--int8 with ")
    add_camera_arguments(parser)
    add_check_argument(parser)
    return parser


def check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where flags do not go together."""
    if args.check:
        refuse_beside_check(args, parser)
        return
    if args.device == "cuda":
        parser.error("argument --device: a conversion computes on the CPU; leave it out")
    for name in () if args.int8 else OF_INT8:
        if getattr(args, name) not in (None, False):
            parser.error(f"argument --{name}: is for --int8")
    for name in () if args.auto_float else (*LIMITS_OF_CHOICE, *DATA):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: is for --auto_float")
    if args.int8:
        target = args.target or DEFAULT_TARGET
        require_writable(args, target, parser)
        float_limit(args, target, parser)
    ptq_methods(args, parser)


def main(args: argparse.Namespace) -> None:
    from common.commands.convert import check, convert

    parser = get_args_parser()
    if args.check:
        check(args.check, args.target or DEFAULT_TARGET)
    else:
        convert(args, ptq_methods(args, parser), parser)


if __name__ == "__main__":
    run(main, get_args_parser())
