"""Convert a network and its checkpoint to an ONNX file, FP32, FP16 or INT8, that is checked against PyTorch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.benchmark.float_choice import MAX_MIOU_DROP, MIN_SQNR
from common.cli.auto_float import (
    DATA,
    add_conversion_arguments,
    choose_in_conversion,
    float_limit,
    write_choice,
)
from common.cli.camera import add_camera_arguments, camera_of
from common.cli.flags import add_egolanes_argument, add_network_arguments, make_parser
from common.cli.main import run, seed_everything
from common.cli.ptq import add_ptq_arguments, ptq_methods
from common.cli.targets import (
    add_check_argument,
    add_codes_arguments,
    add_keep_float_argument,
    add_opset_argument,
    add_optimized_argument,
    add_target_argument,
    batch_size,
    check,
    require_writable,
)
from common.cli.types import positive_int
from common.export.calibration import folder_images
from common.export.conversion import (
    calibrate_source,
    compare_with_fp32,
    convert_fp32,
    convert_half,
    write_int8,
)
from common.export.options import ExportOptions
from common.networks.opening import OpenedNetwork, open_network
from common.networks.registry import find_network
from common.quantization.pt2e import QuantizationSettings
from common.runtimes.agreement import Agreement
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.system.files import require_output
from common.system.markdown import table

# what is of --int8 alone, and of --auto_float
OF_INT8 = ("target", "per_channel", "reduced_range", "optimized", "ptq", "ptq_seconds", "keep_float", "auto_float")
LIMITS_OF_CHOICE = (MAX_MIOU_DROP, MIN_SQNR, "max_evaluations")


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python convert_pytorch_to_onnx.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.onnx")
    add_network_arguments(parser)
    parser.add_argument(
        "-o",
        "--onnx_model_path",
        required=True,
        type=Path,
        metavar="OUT.onnx",
        help="file to write; for executorch .pte",
    )
    parser.add_argument("--batch", type=batch_size, default="dynamic", metavar="N|dynamic", help="batch axis")
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


def main(args: argparse.Namespace) -> None:
    if args.check:
        check(args, get_args_parser())
        return
    target = require_usage(args)
    seed_everything(args.seed)
    require_output(args.onnx_model_path, TARGETS[target].suffix, args.model_checkpoint_path)
    if args.calibration_data and not args.int8:
        raise ValueError("--calibration_data is for --int8; add --int8, or leave the flag out")
    camera = camera_of(args, *find_network(args.name), target, get_args_parser())
    source = open_network(args.name, args.model_checkpoint_path, args.input_hw, args.weights)
    batch = None if args.batch == "dynamic" else args.batch
    options = ExportOptions(args.threads, args.seed, batch, args.opset, args.fuse, args.half, args.optimized, camera)
    if args.int8:
        agreements = quantize(source, args, options, target)
    else:
        agreements = (convert_half if args.half else convert_fp32)(source, args.onnx_model_path, options)
    for name, agreement in zip(source.network.outputs or (), agreements, strict=True):
        runtime = "ONNX Runtime" if TARGETS[target].opsets else TARGETS[target].title
        print(f"{name}: {runtime} against PyTorch FP32: {agreement}")
    print(f"wrote {args.onnx_model_path} ({args.onnx_model_path.stat().st_size / 1e6:.2f} MB)")


def require_usage(args: argparse.Namespace) -> str:
    """The target; exit code 2 where flags do not go together."""
    parser, target = get_args_parser(), args.target or DEFAULT_TARGET
    if args.device == "cuda":
        parser.error("argument --device: a conversion computes on the CPU; leave it out")
    for name in () if args.int8 else OF_INT8:
        if getattr(args, name) not in (None, False):
            parser.error(f"argument --{name}: is for --int8")
    for name in () if args.auto_float else (*LIMITS_OF_CHOICE, *DATA):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: is for --auto_float")
    if args.int8:
        require_writable(args, target, parser)
        ptq_methods(args, parser)
        float_limit(args, find_network(args.name)[1], target, parser)
    return target


def quantize(
    source: OpenedNetwork, args: argparse.Namespace, options: ExportOptions, target: str
) -> Sequence[Agreement]:
    """Calibrate on a part of the images, write the INT8 file, judge and time it on the others."""
    if args.calibration_data is None:
        raise ValueError("--int8 needs --calibration_data FOLDER, a folder of images like those of the car")
    folder, count = args.calibration_data, args.num_calibration_samples
    images = folder_images(source, folder, count, args.seed, args.egolanes_checkpoint, args.image_bits, args.weights)
    parser = get_args_parser()
    methods, limit = ptq_methods(args, parser), float_limit(args, source.network, target, parser)
    per_channel = TARGETS[target].per_channel if args.per_channel is None else args.per_channel
    settings = QuantizationSettings(
        per_channel, args.fuse, tuple(args.keep_float or ()), target=target, reduced_range=args.reduced_range
    )
    calibrated = calibrate_source(source, settings, images.to_calibrate(), methods)
    choice = None
    if limit:
        int8, choice = choose_in_conversion(args, parser, source, calibrated, images, options, target, limit)
    else:
        int8 = calibrated.finished()
    judging = images.to_judge()
    agreements = write_int8(source, int8, args.onnx_model_path, options, target, judging, methods)
    if choice:
        print(f"wrote {write_choice(args.onnx_model_path, choice)}")
    print(table(compare_with_fp32(source, args.onnx_model_path, judging[0], options)))
    print(f"calibrated on {len(images.calibrating)} images, judged on {len(judging)} others")
    return agreements


if __name__ == "__main__":
    run(main, get_args_parser())
