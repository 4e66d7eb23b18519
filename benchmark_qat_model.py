"""Turn a QAT checkpoint into an INT8 ONNX file: calibrate, convert, export, check, and measure accuracy and time."""

import argparse
import logging
from functools import partial
from pathlib import Path

import torch

from common.benchmark import benchmark, leave_by_gate
from common.candidates import Candidate
from common.cli import (
    add_benchmark_arguments,
    add_dataset_arguments,
    fraction,
    make_parser,
    non_negative_int,
    resolve_device,
    run,
    seed_everything,
)
from common.conversion import ExportOptions
from common.datasets import SceneSegDataset, find_samples, spread
from common.description import as_metadata, describe
from common.environment import versions
from common.evaluate import calibration_batches
from common.gate import add_gate_arguments, check_gate
from common.int8_graph import for_onnx_runtime
from common.integer_reference import as_integer_kernels
from common.latency import pin
from common.onnx_export import export_onnx
from common.parity import Agreement, compare, require_equal_pixels
from common.predictors import OnnxPredictor, Predictor, TorchPredictor
from common.ptq_baseline import ptq_baseline
from common.qat_checkpoints import load_qat
from common.quantization import QuantizationSettings, calibrate, convert
from models import find_network

logger = logging.getLogger(__name__)

FOLDER, FILE = "onnx_models", "SceneSegNetwork_QAT_INT8_final.onnx"
CALIBRATION_BATCH = 8  # images, where a checkpoint does not say with how many it was trained
PARITY_IMAGES = 8  # validation images on which ONNX Runtime and PyTorch are compared


def get_args_parser() -> argparse.ArgumentParser:
    example = (
        "python benchmark_qat_model.py --qat_checkpoint_path checkpoints/qat_model_final_calibrated.pth "
        "--dataset_root data"
    )
    parser = make_parser(__doc__, example)
    parser.set_defaults(device="cpu")
    parser.add_argument(
        "--qat_checkpoint_path",
        required=True,
        type=Path,
        metavar="CKPT",
        help="checkpoint of quantize_model_sceneseg.py",
    )
    parser.add_argument("--dataset_root", required=True, type=Path, metavar="DIR", help="data root")
    parser.add_argument(
        "--num_calibration_samples",
        type=non_negative_int,
        default=200,
        help="training images for the last calibration; 0 keeps the ranges of the training",
    )
    parser.add_argument(
        "--min_equal_pixels",
        type=fraction,
        default=0.995,
        help="share of pixels on which ONNX Runtime and PyTorch INT8 have to agree, or no file is written",
    )
    parser.add_argument(
        "--compare_ptq",
        type=Path,
        metavar="CKPT",
        help="FP32 weights (.pth): benchmark them, and them quantized without training, beside the trained INT8",
    )
    add_benchmark_arguments(parser)
    add_gate_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    check_gate(args, 3 if args.compare_ptq else 1)
    seed_everything(args.seed)
    if args.pin:
        pin(args.pin)
    device = resolve_device(args.device)
    prepared, description, _ = load_qat(args.qat_checkpoint_path, device)
    training = find_samples(args.dataset_root, args.datasets, "train")
    validation = spread(find_samples(args.dataset_root, args.datasets, "val"), args.num_samples_per_dataset)
    name, network = find_network(description.network)
    input_hw = description.input_hw

    logger.info(
        "calibrating on %d of %d training images", min(args.num_calibration_samples, len(training)), len(training)
    )
    batch_size = description.arguments.get("batch_size", CALIBRATION_BATCH)
    images = calibration_batches(training, args.num_calibration_samples, batch_size, input_hw, args.seed, args.workers)
    calibrate(prepared, (image.to(device) for image in images))
    int8 = for_onnx_runtime(convert(prepared.cpu()))

    path = args.qat_checkpoint_path.parent / FOLDER / FILE
    path.parent.mkdir(exist_ok=True)
    logger.info("exporting %s", path)
    input_shape = (network.input_shape[0], *input_hw)
    metadata = as_metadata(describe(name, network, description.width, "int8", input_shape, versions()))
    reference = TorchPredictor(as_integer_kernels(int8), torch.device("cpu"))
    compared = [example.image[None] for example in SceneSegDataset(validation[:PARITY_IMAGES], input_hw)]

    def check(candidate: Predictor) -> list[Agreement]:
        agreements = compare(reference, candidate, compared)
        require_equal_pixels(agreements, args.min_equal_pixels)
        return agreements

    (agreement,) = export_onnx(int8, path, input_shape, list(network.outputs), metadata, check, args.threads)

    note = f"ONNX Runtime against PyTorch INT8 on {len(compared)} validation images: {agreement}"
    print(note)
    candidates = {"ONNX INT8": Candidate(path, partial(OnnxPredictor, path), "int8", input_hw)}
    if args.compare_ptq:
        settings = QuantizationSettings(**description.quantization or {})
        calibration = list(
            calibration_batches(training, args.num_calibration_samples, 1, input_hw, args.seed, args.workers)
        )
        options = ExportOptions(args.threads, args.seed)
        others = ptq_baseline(name, args.compare_ptq, path.parent, input_hw, settings, calibration, compared, options)
        candidates = others | candidates  # FP32 is the reference
    document = benchmark("INT8 from QAT", candidates, validation, path.parent, args, [note])
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    leave_by_gate(document)


if __name__ == "__main__":
    run(main, get_args_parser())
