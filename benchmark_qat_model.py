"""Turn a QAT checkpoint into an INT8 ONNX file: calibrate, convert, export, check, and measure accuracy and time."""

import argparse
import logging
from functools import partial
from pathlib import Path

from common.benchmark.gate import open_gate
from common.benchmark.ptq import LABELS as PTQ_LABELS
from common.benchmark.ptq import fp32_candidate, without_training
from common.benchmark.run import keep_to_processors
from common.benchmark.sensitivity_analysis import analyse
from common.cli.benchmark import (
    add_benchmark_arguments,
    add_gate_arguments,
    benchmark_settings,
    leave_by_gate,
)
from common.cli.camera import add_camera_arguments, camera_of
from common.cli.flags import (
    add_dataset_arguments,
    add_egolanes_argument,
    add_images_argument,
    add_name_argument,
    add_weights_argument,
    compares_outputs,
    make_parser,
    refuse_with_class_maps,
    refuse_with_images,
    score_against_labels,
)
from common.cli.main import resolve_device, run, seed_everything
from common.cli.ptq import add_ptq_arguments, methods_of_comparison
from common.cli.qat_benchmark import (
    FILE_EQUAL_PIXELS,
    equal_pixels,
    examples_of,
    open_folder,
    open_reference,
    targets_of,
)
from common.cli.qat_images import labelled_images, output_images, samples_with_masks
from common.cli.targets import add_opset_argument, add_optimized_argument, add_target_argument
from common.cli.types import fraction, non_negative_int, positive_int
from common.data.classes import classes_of
from common.data.transforms import ImageFormat
from common.export.options import ExportOptions
from common.export.qat_export import export_int8, labels_of
from common.networks.checkpoints import require_choice
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.methods import USUAL
from common.quantization.pt2e import calibrate, convert
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.training.settings import QatSettings, keeps_ranges, observed_images, retraining_command, start_of
from models import DEFAULT_NETWORK

logger = logging.getLogger(__name__)

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
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset_root", type=Path, metavar="DIR", help="data root, of images with labels")
    add_images_argument(source, "compare the outputs with the FP32 network's")
    parser.add_argument(
        "-fp32",
        "--fp32_model",
        type=Path,
        metavar="CKPT",
        help="where outputs are compared (--images, labels that are no masks of classes): the FP32 weights to compare "
        "with; default: those of the training",
    )
    add_egolanes_argument(parser, "on images")
    parser.add_argument(
        "--num_calibration_samples",
        type=non_negative_int,
        help="training images for the last calibration (default: "
        f"{QatSettings.num_calibration_samples}); 0 keeps the ranges of the training, the default where it was without "
        "labels",
    )
    parser.add_argument(
        "--min_equal_pixels",
        type=fraction,
        help=f"share of pixels on which a file and PyTorch INT8 have to agree, or no file is written (default: "
        f"{FILE_EQUAL_PIXELS}); where outputs are compared also a limit of the gate, of INT8 against FP32",
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
    add_ptq_arguments(parser, "--compare_ptq with these ")
    add_weights_argument(parser)
    add_target_argument(
        parser, "the file is for", "default: the checkpoint's own; one whose quantization is another is refused"
    )
    add_opset_argument(parser)
    parser.add_argument(
        "--batch",
        choices=("dynamic", "1"),
        default="dynamic",
        help="batch axis of the ONNX file; images come one by one",
    )
    parser.add_argument("--half", action="store_true", help="tensorrt: FP16 for what is not in int8")
    add_optimized_argument(parser)
    add_camera_arguments(parser)
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
    refuse_with_images(args, get_args_parser(), ("datasets", "labels", "sensitivity"))
    name, network = find_network(args.name)
    outputs, score = compares_outputs(args, network), score_against_labels(args, name, network)
    if not outputs:
        refuse_with_class_maps(args, get_args_parser(), ("fp32_model", "egolanes_checkpoint"))
    elif args.sensitivity:
        get_args_parser().error(f"argument --sensitivity: takes masks of classes, {name} gives no map of them")
    references = PTQ_LABELS if args.compare_ptq else PTQ_LABELS[:1] if outputs else ()
    targets, methods = targets_of(args, get_args_parser()), methods_of_comparison(args, get_args_parser())
    camera = camera_of(args, name, network, targets[0], get_args_parser())
    if outputs and camera.output == "classes":
        get_args_parser().error("argument --output: classes are scored on masks (--dataset_root); outputs are compared")
    labels = [*references, *labels_of(targets)]
    least_equal, limits = equal_pixels(args, outputs)
    settings, gate = benchmark_settings(args), open_gate(limits, labels, outputs=outputs, score=score)
    seed_everything(args.seed)
    keep_to_processors(settings)
    device = resolve_device(args.device)
    prepared, description, checkpoint = load_qat(args.qat_checkpoint_path, name, device, args.weights)
    require_choice(checkpoint, args.weights)
    untrained = open_reference(args, name, description, outputs)
    if outputs:
        images = output_images(args, network, description.input_hw, score)
    else:
        images = labelled_images(args, network, description.input_hw)
    gate.require_calls(len(images.validation), args.timed_runs)
    folder = open_folder(args.qat_checkpoint_path)

    start = start_of(description.arguments)
    asked, usual = args.num_calibration_samples, QatSettings.num_calibration_samples
    count = min(usual if asked is None else asked, images.training)
    if asked == 0 or (asked is None and keeps_ranges(description.arguments)):
        logger.info("the ranges are those of the training")
    else:
        logger.info("calibrating on %d of %d training images", count, images.training)
        batch_size = observed_images(description.arguments) or CALIBRATION_BATCH
        calibrate(prepared, (batch.to(device) for batch in images.draw(count, batch_size)), (start or USUAL).ranges)
    sensitivity = None
    if args.sensitivity:
        samples, image_format = samples_with_masks(images), ImageFormat.of(network, description.input_hw)
        examples = examples_of(samples, args.sensitivity, image_format)
        retraining = partial(retraining_command, description.arguments)
        sensitivity = analyse(prepared, examples, classes_of(network, samples), device, retraining)
    int8 = convert(prepared.cpu())

    compared = images.inputs(PARITY_IMAGES)
    batch = None if args.batch == "dynamic" else int(args.batch)
    options = ExportOptions(
        args.threads, args.seed, batch, args.opset, half=args.half, optimized=args.optimized, camera=camera
    )
    corrected = start.names if start else ()
    candidates, notes = export_int8(int8, name, description, folder, compared, least_equal, options, targets, corrected)
    print(*notes, sep="\n")
    if untrained:  # FP32 is the reference
        if args.compare_ptq:
            calibration = list(images.draw(count, 1))
            target = targets[0] if TARGETS[targets[0]].opsets else DEFAULT_TARGET  # the PTQ file is ONNX
            candidates = (
                without_training(description, untrained, folder, calibration, compared, options, target, methods)
                | candidates
            )
        else:
            candidates = fp32_candidate(untrained, folder, options) | candidates
    document = images.run(folder, candidates, gate, notes=notes, sensitivity=sensitivity)
    for candidate in candidates.values():
        print(f"wrote {candidate.path} ({candidate.size_bytes / 1e6:.2f} MB)")
    leave_by_gate(document)


if __name__ == "__main__":
    run(main, get_args_parser())
