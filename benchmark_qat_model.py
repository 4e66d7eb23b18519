"""Turn a QAT checkpoint into an INT8 ONNX file: calibrate, convert, export, check, and measure accuracy and time."""

import argparse
import logging
from functools import partial
from pathlib import Path

import torch

from common.cli import (
    add_dataset_arguments,
    fraction,
    make_parser,
    non_negative_int,
    plain_arguments,
    positive_int,
    resolve_device,
    run,
    seed_everything,
)
from common.datasets import SceneSegDataset, find_samples, spread
from common.description import as_metadata, describe
from common.environment import versions
from common.evaluate import calibration_batches, evaluate_datasets, warm_up
from common.int8_graph import for_onnx_runtime
from common.integer_reference import as_integer_kernels
from common.memory import peak_memory
from common.onnx_export import export_onnx
from common.parity import Agreement, compare, require_equal_pixels
from common.predictors import OnnxPredictor, Predictor, TorchPredictor
from common.qat_checkpoints import load_qat
from common.quantization import calibrate, convert
from common.report import accuracy_table, model_result, summary_table, write_report
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
        "--num_samples_per_dataset", type=positive_int, default=20, help="validation images scored per dataset"
    )
    parser.add_argument("--warmup_runs", type=non_negative_int, default=3, help="untimed runs before the clock starts")
    parser.add_argument(
        "--min_equal_pixels",
        type=fraction,
        default=0.995,
        help="share of pixels on which ONNX Runtime and PyTorch INT8 have to agree, or no file is written",
    )
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
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

    predict = OnnxPredictor(path, args.threads)
    warm_up(predict, validation, input_hw, args.warmup_runs)
    evaluations = evaluate_datasets(predict, validation, input_hw)
    memory = peak_memory(partial(OnnxPredictor, path, args.threads), (1, 3, *input_hw), args.threads)
    models = {"ONNX INT8": model_result(path, "int8", predict.provider, args.threads, input_hw, evaluations, memory)}
    note = f"ONNX Runtime against PyTorch INT8 on {len(compared)} validation images: {agreement}"
    write_report(path.parent, "INT8 from QAT", models, plain_arguments(args), [note])
    print(note)
    print(accuracy_table(models), summary_table(models), sep="\n\n")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB), results.json and report.md beside it")


if __name__ == "__main__":
    run(main, get_args_parser())
