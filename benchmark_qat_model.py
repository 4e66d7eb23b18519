"""Turn a QAT checkpoint into an INT8 ONNX file: calibrate, convert, export, check, and measure accuracy and time."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.benchmark.gate import open_gate
from common.benchmark.ptq import LABELS as PTQ_LABELS
from common.benchmark.ptq import open_untrained, without_training
from common.benchmark.run import keep_to_processors
from common.benchmark.sensitivity_analysis import analyse
from common.cli.benchmark import (
    add_benchmark_arguments,
    add_gate_arguments,
    benchmark_settings,
    gate_settings,
    leave_by_gate,
    run_benchmark,
)
from common.cli.flags import add_dataset_arguments, add_name_argument, add_weights_argument, make_parser, sample_source
from common.cli.main import resolve_device, run, seed_everything
from common.cli.types import fraction, non_negative_int, positive_int
from common.data.bad_samples import usable_samples
from common.data.classes import classes_of
from common.data.datasets import Example, SampleDataset, evenly_spaced, spread
from common.data.pairs import BadSample, Sample
from common.data.transforms import ImageFormat
from common.export.conversion import ExportOptions
from common.export.qat_export import ONNX_LABEL, PTE_LABEL, export_int8
from common.networks.checkpoints import require_choice
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.pt2e import calibrate, convert
from common.scoring.evaluate import calibration_batches
from common.system.lock import hold_folder
from common.training.settings import observed_images, retraining_command
from models import DEFAULT_NETWORK

logger = logging.getLogger(__name__)

FOLDER = "onnx_models"  # beside the checkpoint
CALIBRATION_BATCH = 8  # images, where a checkpoint does not say how many its observers saw at a time
SENSITIVITY_IMAGES = 8  # enough for a ratio of sums over all their pixels
PARITY_IMAGES = 8  # validation images on which each file is compared with PyTorch


def get_args_parser() -> argparse.ArgumentParser:
    example = (
        "python benchmark_qat_model.py --qat_checkpoint_path checkpoints/qat_model_final_calibrated.pth "
        "--dataset_root data"
    )
    parser = make_parser(__doc__, example)
    parser.set_defaults(device="cpu")
    add_name_argument(parser, default=DEFAULT_NETWORK)
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
        help="share of pixels on which a file and PyTorch INT8 have to agree, or no file is written",
    )
    parser.add_argument(
        "--pte", action="store_true", help="also write an ExecuTorch program for XNNPACK, and benchmark it"
    )
    parser.add_argument(
        "--compare_ptq",
        type=Path,
        metavar="CKPT",
        help="FP32 weights: benchmark them, and them quantized without training, beside the trained INT8",
    )
    add_weights_argument(parser)
    parser.add_argument(
        "--sensitivity",
        type=positive_int,
        nargs="?",
        const=SENSITIVITY_IMAGES,
        metavar="IMAGES",
        help="also measure what quantization costs in every layer, and what each block in float would bring, on that "
        f"many validation images ({SENSITIVITY_IMAGES})",
    )
    add_benchmark_arguments(parser)
    add_gate_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    labels = [*(PTQ_LABELS if args.compare_ptq else ()), ONNX_LABEL, *[PTE_LABEL] * args.pte]
    settings, gate = benchmark_settings(args), open_gate(gate_settings(args), labels)
    seed_everything(args.seed)
    keep_to_processors(settings)
    device = resolve_device(args.device)
    name, network = find_network(args.name)
    prepared, description, checkpoint = load_qat(args.qat_checkpoint_path, name, device, args.weights)
    require_choice(checkpoint, args.weights)
    untrained = None
    if args.compare_ptq:
        untrained = open_untrained(name, description, args.compare_ptq, args.weights, args.num_calibration_samples)
    bad: list[BadSample] = []
    find = partial(usable_samples, sample_source(args, network, args.dataset_root), bad=bad)
    training, validation = find("train"), spread(find("val"), args.num_samples_per_dataset)
    gate.require_calls(len(validation), args.timed_runs)
    folder = open_folder(args.qat_checkpoint_path)

    count = min(args.num_calibration_samples, len(training))
    logger.info("calibrating on %d of %d training images", count, len(training))
    image_format = ImageFormat.of(network, description.input_hw)
    draw = partial(
        calibration_batches, training, count, image_format=image_format, seed=args.seed, workers=args.workers
    )
    batch_size = observed_images(description.arguments) or CALIBRATION_BATCH
    calibrate(prepared, (images.to(device) for images in draw(batch_size)))
    sensitivity = None
    if args.sensitivity:
        examples = examples_of(validation, args.sensitivity, image_format)
        retraining = partial(retraining_command, description.arguments)
        sensitivity = analyse(prepared, examples, classes_of(network, validation), device, retraining)
    int8 = convert(prepared.cpu())

    compared = [example.image[None] for example in examples_of(validation, PARITY_IMAGES, image_format)]
    candidates, notes = export_int8(
        int8, name, description, folder, compared, args.min_equal_pixels, args.threads, pte=args.pte
    )
    print(*notes, sep="\n")
    if untrained:  # FP32 is the reference
        options = ExportOptions(args.threads, args.seed)
        candidates = without_training(description, untrained, folder, list(draw(1)), compared, options) | candidates
    run_with = partial(run_benchmark, args, folder, "INT8 from QAT", candidates, validation, network, gate)
    document = run_with(notes=notes, bad=bad, sensitivity=sensitivity)
    for candidate in candidates.values():
        print(f"wrote {candidate.path} ({candidate.size_bytes / 1e6:.2f} MB)")
    leave_by_gate(document)


def open_folder(checkpoint: Path) -> Path:
    """The folder of the results beside a checkpoint, which no other run writes to."""
    folder = checkpoint.parent / FOLDER
    folder.mkdir(exist_ok=True)
    hold_folder(folder, "wait for its end")
    return folder


def examples_of(samples: Sequence[Sample], count: int, image_format: ImageFormat) -> list[Example]:
    """As many of the samples, evenly spaced, as networks take them."""
    dataset = SampleDataset(evenly_spaced(samples, count), image_format)
    return [dataset[index] for index in range(len(dataset))]


if __name__ == "__main__":
    run(main, get_args_parser())
