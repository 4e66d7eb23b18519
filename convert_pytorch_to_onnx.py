"""Convert a network and its checkpoint to an ONNX file, FP32, FP16 or INT8, that is checked against PyTorch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli.flags import add_egolanes_argument, add_image_bits_argument, add_network_arguments, make_parser
from common.cli.main import run, seed_everything
from common.cli.targets import add_check_argument, add_target_argument, check
from common.cli.types import positive_int
from common.export.conversion import (
    ExportOptions,
    calibration_inputs,
    compare_with_fp32,
    convert_fp32,
    convert_half,
    convert_int8,
)
from common.export.onnx_writer import NEWEST_OPSET, OLDEST_OPSET, OPSET
from common.networks.opening import OpenedNetwork, open_network
from common.quantization.pt2e import QuantizationSettings
from common.runtimes.agreement import Agreement
from common.system.files import require_output
from common.system.markdown import table


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python convert_pytorch_to_onnx.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.onnx")
    add_network_arguments(parser)
    parser.add_argument(
        "-o", "--onnx_model_path", required=True, type=Path, metavar="OUT.onnx", help="file to write, .onnx"
    )
    parser.add_argument("--batch", type=batch_size, default="dynamic", metavar="N|dynamic", help="batch axis")
    parser.add_argument(
        "--opset", type=opset, default=OPSET, help=f"ONNX operator set, {OLDEST_OPSET} to {NEWEST_OPSET}"
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="FP16 inside; input and output stay FP32")
    precision.add_argument("--int8", action="store_true", help="INT8 without training, from --calibration_data")
    parser.add_argument("--calibration_data", type=Path, metavar="DIR", help="images for --int8, however deep")
    add_image_bits_argument(parser)
    parser.add_argument("--num_calibration_samples", type=positive_int, default=64, help="images for the calibration")
    parser.add_argument("--per_channel", action="store_true", help="--int8 with one weight scale per output channel")
    add_egolanes_argument(parser, "with --int8")
    add_target_argument(parser, "--check is for")
    add_check_argument(parser)
    return parser


def batch_size(text: str) -> int | str:
    """An argparse type: a fixed batch size, or `dynamic`."""
    return text if text == "dynamic" else positive_int(text)


def opset(text: str) -> int:
    """An argparse type: an operator set that the exporter writes."""
    number = positive_int(text)
    if not OLDEST_OPSET <= number <= NEWEST_OPSET:
        raise argparse.ArgumentTypeError(f"{text!r} is not an operator set from {OLDEST_OPSET} to {NEWEST_OPSET}")
    return number


def main(args: argparse.Namespace) -> None:
    if args.check:
        check(args, get_args_parser())
        return
    if args.target:
        get_args_parser().error("argument --target: is for --check")
    if args.device == "cuda":
        get_args_parser().error("argument --device: a conversion computes on the CPU; leave it out")  # exit code 2
    seed_everything(args.seed)
    require_output(args.onnx_model_path, ".onnx", args.model_checkpoint_path)
    if args.calibration_data and not args.int8:
        raise ValueError("--calibration_data is for --int8; add --int8, or leave the flag out")
    source = open_network(args.name, args.model_checkpoint_path, args.input_hw, args.weights)
    options = ExportOptions(
        args.threads, args.seed, None if args.batch == "dynamic" else args.batch, args.opset, args.fuse
    )
    if args.int8:
        agreements = quantize(source, args, options)
    else:
        agreements = (convert_half if args.half else convert_fp32)(source, args.onnx_model_path, options)
    for name, agreement in zip(source.network.outputs or (), agreements, strict=True):
        print(f"{name}: ONNX Runtime against PyTorch FP32: {agreement}")
    print(f"wrote {args.onnx_model_path} ({args.onnx_model_path.stat().st_size / 1e6:.2f} MB)")


def quantize(source: OpenedNetwork, args: argparse.Namespace, options: ExportOptions) -> Sequence[Agreement]:
    """Calibrate on a part of the images, write the INT8 file, judge and time it on the others."""
    if args.calibration_data is None:
        raise ValueError("--int8 needs --calibration_data FOLDER, a folder of images like those of the car")
    folder, count = args.calibration_data, args.num_calibration_samples
    calibration, held_out = calibration_inputs(
        source, folder, count, args.seed, args.egolanes_checkpoint, args.image_bits, args.weights
    )
    settings = QuantizationSettings(args.per_channel, args.fuse)
    agreements = convert_int8(source, args.onnx_model_path, options, settings, calibration, held_out)
    print(table(compare_with_fp32(source, args.onnx_model_path, held_out[0], options)))
    print(f"calibrated on {len(calibration)} images, judged on {len(held_out)} others")
    return agreements


if __name__ == "__main__":
    run(main, get_args_parser())
