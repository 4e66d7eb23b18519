"""Compare models on the same images: accuracy, time, size, memory, pictures and a report. PyTorch and ONNX files."""

import argparse
from pathlib import Path

from common.cli.benchmark import add_benchmark_arguments, add_gate_arguments, gate_settings
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
from common.cli.types import height_width, named_path
from common.runtimes.kinds import KINDS
from common.runtimes.providers import CPU, PROVIDERS
from models import DEFAULT_NETWORK


def get_args_parser() -> argparse.ArgumentParser:
    example = (
        "python benchmark_onnx_models.py --pytorch_model_path best_model.pth --fp32_model_path SceneSeg.onnx "
        "--int8_model_path checkpoints/onnx_models/SceneSegNetwork_QAT_INT8_final.onnx --dataset_root data"
    )
    parser = make_parser(__doc__, example, check_usage)
    parser.set_defaults(device="cpu")
    add_name_argument(parser, default=DEFAULT_NETWORK)
    parser.add_argument("--pytorch_model_path", type=Path, metavar="CKPT", help="FP32 weights (.pth, .safetensors)")
    parser.add_argument("--fp32_model_path", type=Path, metavar="ONNX", help="FP32 ONNX file")
    parser.add_argument("--int8_model_path", type=Path, metavar="ONNX", help="INT8 ONNX file")
    parser.add_argument("--pte_model_path", type=Path, metavar="PTE", help="ExecuTorch program")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=named_path,
        metavar="NAME=PATH",
        help=f"any other model, of a kind by its suffix: {', '.join(KINDS)}; may be repeated. The first model of all "
        "is the reference of the differences",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset_root", type=Path, metavar="DIR", help="data root; needed unless --images or --show is given"
    )
    add_images_argument(source, "all of them; compare the outputs with the first model's")
    add_egolanes_argument(parser, "on images")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="PATH",
        help="no benchmark: write what the models see in an image, a folder of images or a video, with their times",
    )
    parser.add_argument("--save_outputs", action="store_true", help="also write the pictures as PNG files")
    parser.add_argument(
        "--output_dir_base",
        type=Path,
        default=Path("./benchmark_multimodel_results"),
        metavar="DIR",
        help="results go to a dated folder below it",
    )
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        default=[CPU],
        metavar="PROVIDER",
        help=f"run the ONNX files on each of these of ONNX Runtime, {', '.join(PROVIDERS)}; never on another one",
    )
    add_weights_argument(parser)
    parser.add_argument("--pytorch_target_hw", type=height_width, metavar="H,W", help="default: the file's own")
    parser.add_argument("--onnx_target_hw", type=height_width, metavar="H,W", help="default: the file's own")
    add_benchmark_arguments(parser)
    add_gate_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where flags do not go together."""
    refuse_with_images(args, parser, ("datasets", "labels", "show"))
    if not (args.dataset_root or args.images or args.show):
        parser.error("the following arguments are required: --dataset_root")
    gate = gate_settings(args)
    if args.show and (unused := [*gate.limits.given(), *["baseline"] * bool(gate.baseline)]):
        parser.error(f"argument --show: makes no benchmark to check; leave --{unused[0]} out")


def main(args: argparse.Namespace) -> None:
    from common.commands.benchmark_onnx import compare_models

    compare_models(args, get_args_parser())


if __name__ == "__main__":
    run(main, get_args_parser())
