"""Turn a QAT checkpoint into an INT8 ONNX file: calibrate, convert, export, check, and measure accuracy and time."""

import argparse
from pathlib import Path

from common.cli.auto_float import add_auto_float_arguments
from common.cli.benchmark import add_benchmark_arguments, add_gate_arguments
from common.cli.camera import add_camera_arguments
from common.cli.flags import (
    add_dataset_arguments,
    add_egolanes_argument,
    add_images_argument,
    add_name_argument,
    add_weights_argument,
    make_parser,
    refuse_with_images,
)
from common.cli.main import run
from common.cli.ptq import add_ptq_arguments, methods_of_comparison
from common.cli.targets import (
    add_keep_float_argument,
    add_opset_argument,
    add_optimized_argument,
    add_target_argument,
    batch_size,
)
from common.cli.types import fraction, non_negative_int, positive_int
from common.export.options import FILE_EQUAL_PIXELS
from common.training.settings import QatSettings
from models import DEFAULT_NETWORK

SENSITIVITY_IMAGES = 8  # enough for a ratio of sums over all their pixels


def get_args_parser() -> argparse.ArgumentParser:
    example = (
        "python benchmark_qat_model.py --qat_checkpoint_path checkpoints/qat_model_final_calibrated.pth "
        "--dataset_root data"
    )
    parser = make_parser(__doc__, example, check_usage)
    parser.set_defaults(device="cpu")
    add_name_argument(parser, default=DEFAULT_NETWORK)
    add_input_arguments(parser)
    add_comparison_arguments(parser)
    add_file_arguments(parser)
    add_benchmark_arguments(parser)
    add_gate_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, the images, and how these calibrate it."""
    parser.add_argument(
        "--qat_checkpoint_path",
        required=True,
        type=Path,
        metavar="CKPT",
        help="checkpoint of quantize_model_sceneseg.py",
    )
    add_weights_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset_root", type=Path, metavar="DIR", help="data root, of images with labels")
    add_images_argument(source, "compare the outputs with the FP32 network's")
    add_egolanes_argument(parser, "on images")
    parser.add_argument(
        "--num_calibration_samples",
        type=non_negative_int,
        help="training images for the last calibration (default: "
        f"{QatSettings.num_calibration_samples}); 0 keeps the ranges of the training, the default where it was without "
        "labels",
    )


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """What the trained INT8 is compared with, and what is found out of its layers."""
    parser.add_argument(
        "-fp32",
        "--fp32_model",
        type=Path,
        metavar="CKPT",
        help="where outputs are compared (--images, labels that are no masks of classes): the FP32 weights to compare "
        "with; default: those of the training",
    )
    parser.add_argument(
        "--compare_ptq",
        type=Path,
        metavar="CKPT",
        help="FP32 weights: benchmark them, and them quantized without training, beside the trained INT8",
    )
    add_ptq_arguments(parser, "--compare_ptq with these ")
    parser.add_argument(
        "--sensitivity",
        type=positive_int,
        nargs="?",
        const=SENSITIVITY_IMAGES,
        metavar="IMAGES",
        help="also measure what quantization costs in every layer, and what each block in float would bring, on that "
        f"many validation images ({SENSITIVITY_IMAGES})",
    )
    add_keep_float_argument(parser, "beside those of the training ")
    add_auto_float_arguments(parser, "the validation images")


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """What the INT8 files are for, what form they have, and how near they come to PyTorch."""
    add_target_argument(
        parser, "the file is for", "default: the checkpoint's own; one whose quantization is another is refused"
    )
    parser.add_argument(
        "--pte", action="store_true", help="also write an ExecuTorch program for XNNPACK, and benchmark it"
    )
    add_opset_argument(parser)
    parser.add_argument(
        "--batch",
        type=batch_size,
        choices=("dynamic", 1),
        help="batch axis of the ONNX file; images come one by one; default: dynamic, for openvino 1",
    )
    parser.add_argument("--half", action="store_true", help="tensorrt: FP16 for what is not in int8")
    add_optimized_argument(parser)
    parser.add_argument(
        "--min_equal_pixels",
        type=fraction,
        help=f"share of pixels on which a file and PyTorch INT8 have to agree, or no file is written (default: "
        f"{FILE_EQUAL_PIXELS}); where outputs are compared also a limit of the gate, of INT8 against FP32",
    )
    add_camera_arguments(parser)


def check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where flags do not go together."""
    refuse_with_images(args, parser, ("datasets", "labels", "sensitivity"))
    methods_of_comparison(args, parser)


def main(args: argparse.Namespace) -> None:
    from common.commands.benchmark_qat import benchmark_trained

    parser = get_args_parser()
    benchmark_trained(args, methods_of_comparison(args, parser), parser)


if __name__ == "__main__":
    run(main, get_args_parser())
