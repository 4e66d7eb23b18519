"""Measure what each method of post-training quantization, and some together, do to INT8: SQNR, mIoU, time to quantize.

Images for the calibration are of the training split, images that are scored of the validation split. Outputs are those
of the graph that the ONNX file is written from, in integers as its kernels. Rows of ONNX Runtime's `quantize_static`
and, where it is installed, of NNCF (its file in OpenVINO, in float32 what is not int8) are of the same images. "float
weights" is the plain INT8 network with weights that are not rounded: what is left is the activations' part, which no
method for weights takes away but by making up for it.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from benchmarks.others import HAS_NNCF, OpenVinoPredictor, quantize_by_nncf, quantize_statically
from common.cli.flags import (
    add_dataset_arguments,
    add_images_argument,
    add_name_argument,
    add_weights_argument,
    make_parser,
)
from common.cli.main import run
from common.cli.types import positive_float, positive_int
from common.commands.inputs import sample_source
from common.data.classes import Classes, classes_of
from common.data.datasets import SPLITS, evenly_spaced, find_samples
from common.data.loading import SampleDataset
from common.data.shots import ShotDataset, find_shots, split_shots
from common.data.transforms import ImageFormat
from common.export.conversion import convert_fp32
from common.export.int8_graph import for_target
from common.export.options import ExportOptions
from common.networks.image_inputs import image_inputs
from common.networks.opening import OpenedNetwork, open_network
from common.quantization.graphs import WEIGHTED, finish, is_dequantized_weight, store_beside, stored
from common.quantization.integer_reference import as_integer_kernels
from common.quantization.methods import TIME_LIMIT, methods_of
from common.quantization.nodes import input_of
from common.quantization.pt2e import calibrate_network, quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.report.text import table
from common.runtimes.parity import compare
from common.runtimes.predictors import OnnxPredictor, Predictor, TorchPredictor
from common.runtimes.targets import ONNX_RUNTIME
from common.scoring.metrics import IoUMeter
from common.system.csv_text import csv_text
from common.system.files import write_text
from common.system.process import seed_everything
from models import DEFAULT_NETWORK

CPU = torch.device("cpu")
ROWS = ("percentile", "mse", "mse_weights", "equalize", "correct_biases", "adaround")
FP32, PLAIN, FLOAT_WEIGHTS = "FP32", "plain", "float weights"
NNCF = "NNCF"
OTHERS = ("quantize_static", NNCF)
TOGETHER = ("best", "equalize correct_biases", "equalize adaround correct_biases", "equalize mse_weights adaround")
ALL = (FP32, PLAIN, FLOAT_WEIGHTS, *ROWS, *TOGETHER, *OTHERS)
# rows whose weights have no scales, or by channel alone
OF_ONE_KIND = {FP32: (False,), FLOAT_WEIGHTS: (False,), NNCF: (True,)}


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "python -m benchmarks.ptq_methods -fp32 fp32/best_model.pth -r data --datasets CamVid --csv ptq.csv"
    )
    add_name_argument(parser, default=DEFAULT_NETWORK)
    parser.add_argument("-fp32", "--fp32_model", type=Path, required=True, metavar="CKPT", help="FP32 weights")
    add_weights_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-r", "--root", type=Path, metavar="DIR", help="data root, of images with masks of classes")
    add_images_argument(source, "SQNR alone")
    parser.add_argument("--num_calibration_samples", type=positive_int, default=64, help="training images")
    parser.add_argument("--num_val_samples", type=positive_int, default=46, help="validation images")
    parser.add_argument("--seconds", type=positive_float, default=TIME_LIMIT, help="longest time of adaround")
    parser.add_argument("--only", nargs="+", choices=ALL, help="rows to make; default: all")
    parser.add_argument("--csv", type=Path, required=True, metavar="OUT.csv", help="the table")
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    source = open_network(args.name, args.fp32_model, None, args.weights)
    calibration, validation, truth = images_of(args, source)
    rows = []
    for row_name in args.only or [name for name in ALL if name != NNCF or HAS_NNCF]:
        for per_channel in OF_ONE_KIND.get(row_name, (False, True)):
            seed_everything(args.seed)
            start = time.perf_counter()
            name, predict = quantized(row_name, per_channel, source, calibration, args)
            seconds = time.perf_counter() - start
            found = compare(TorchPredictor(source.model, CPU), predict, validation)
            row = {"methods": name, "weights": "per channel" if per_channel else "per tensor"}
            row |= {"SQNR dB": " ".join(f"{each.sqnr_db:.2f}" for each in found), "seconds": f"{seconds:.0f}"}
            rows.append(row | ({"mIoU": f"{miou(predict, validation, truth):.4f}"} if truth else {}))
            write_text(args.csv, csv_text(rows))
    print(table(rows))
    print(f"wrote {args.csv}")


def quantized(
    row: str, per_channel: bool, source: OpenedNetwork, calibration: Sequence[Tensor], args: argparse.Namespace
) -> tuple[str, Predictor]:
    """What a row is called, and its network."""
    if row == FP32:
        return row, TorchPredictor(source.model, CPU)
    if row in OTHERS:
        return row, quantized_by_others(row, per_channel, source, calibration, args.threads or 1)
    network, settings = copy.deepcopy(source.model), QuantizationSettings(per_channel)
    if row == FLOAT_WEIGHTS:
        calibrated = calibrate_network(network, source.input_shape, settings, calibration)
        return row, TorchPredictor(with_float_weights(calibrated.quantized(), calibrated.floats), CPU)
    chosen = methods_of([name for name in row.split() if name != PLAIN], args.seconds)
    int8 = quantize_after_training(network, source.input_shape, settings, calibration, chosen)
    return " ".join(chosen.names), TorchPredictor(as_integer_kernels(for_target(int8, ONNX_RUNTIME)), CPU)


def with_float_weights(int8: GraphModule, floats: GraphModule) -> GraphModule:
    """A converted graph with the weights of `floats`, from which it was made, in the place of their codes; in place."""
    originals = {node.name: node for node in floats.graph.nodes if node.target in WEIGHTED}
    for node in int8.graph.nodes:
        if node.target in WEIGHTED and is_dequantized_weight(input_of(node, 1)):
            codes, weights = input_of(input_of(node, 1)), stored(floats, input_of(originals[node.name], 1))
            with int8.graph.inserting_before(node):
                node.update_arg(1, store_beside(int8, codes, weights.detach(), "_values"))
    finish(int8)
    return int8


def quantized_by_others(
    row: str, per_channel: bool, source: OpenedNetwork, calibration: Sequence[Tensor], threads: int
) -> Predictor:
    """The FP32 file, quantized by another tool, in its runtime."""
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32.onnx"
        convert_fp32(source, fp32, ExportOptions(threads))
        if row == NNCF:
            quantize_by_nncf(fp32, calibration, Path(folder) / "nncf.xml")
            return OpenVinoPredictor(Path(folder) / "nncf.xml", threads, exact=True)
        quantize_statically(fp32, calibration, Path(folder) / "static.onnx", per_channel)
        return OnnxPredictor(Path(folder) / "static.onnx", threads)


@dataclass(frozen=True)
class Truth:
    """What the images of the score show."""

    masks: list[Tensor]  # (1, H, W), of class ids
    classes: Classes


def images_of(args: argparse.Namespace, source: OpenedNetwork) -> tuple[list[Tensor], list[Tensor], Truth | None]:
    """Images (1, C, H, W) for the calibration and for the score, and the masks of the latter; none with `--images`."""
    counts = args.num_calibration_samples, args.num_val_samples
    hw = source.input_shape[1:]
    if args.images:
        inputs = image_inputs(source.name, source.network, hw, CPU, None, args.weights)
        shots = split_shots(find_shots(args.images, inputs.shots.count, args.image_bits))
        drawn = [
            ShotDataset(evenly_spaced(each, count), inputs.shots) for each, count in zip(shots, counts, strict=True)
        ]
        first, second = ([inputs(each[index][None]) for index in range(len(each))] for each in drawn)
        return first, second, None
    samples = sample_source(args, source.network, args.root)
    found = [find_samples(samples, split) for split in SPLITS]
    kept = [
        SampleDataset(evenly_spaced(each, count), ImageFormat.of(source.network, hw))
        for each, count in zip(found, counts, strict=True)
    ]
    training, validation = ([each[index] for index in range(len(each))] for each in kept)
    truth = Truth([each.mask[None] for each in validation], classes_of(source.network, found[1]))
    return [each.image[None] for each in training], [each.image[None] for each in validation], truth


def miou(predict: Predictor, images: list[Tensor], truth: Truth) -> float:
    """Of all images together."""
    meter = IoUMeter(truth.classes)
    for image, mask in zip(images, truth.masks, strict=True):
        meter.update(predict(image).argmax(dim=1), mask)
    return meter.miou()


if __name__ == "__main__":
    run(main, get_args_parser())
