"""A QAT checkpoint to INT8 files that are measured: calibrate, convert, export, compare."""

import argparse
import logging
from functools import partial

from common.benchmark.gate import open_gate
from common.benchmark.ptq import LABELS as PTQ_LABELS
from common.benchmark.ptq import fp32_candidate, without_training
from common.benchmark.run import keep_to_processors
from common.benchmark.sensitivity_analysis import analyse
from common.cli.benchmark import benchmark_settings
from common.cli.flags import refuse_with_class_maps
from common.commands.export import camera_of, export_options
from common.commands.inputs import compares_outputs, score_against_labels
from common.commands.qat_images import labelled_images, output_images, samples_with_masks
from common.commands.qat_setup import equal_pixels, examples_of, open_folder, open_reference, targets_of
from common.commands.reports import leave_by_gate
from common.data.classes import classes_of
from common.data.transforms import ImageFormat
from common.export.qat_export import export_int8, labels_of
from common.networks.checkpoints import require_choice
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.methods import PtqMethods
from common.quantization.pt2e import calibrate, convert
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.system.process import resolve_device, seed_everything
from common.training.settings import QatSettings, keeps_ranges, observed_images, retraining_command

logger = logging.getLogger(__name__)

CALIBRATION_BATCH = 8  # images, where a checkpoint does not say how many its observers saw at a time
PARITY_IMAGES = 8  # validation images on which each file is compared with PyTorch


def benchmark_trained(args: argparse.Namespace, methods: PtqMethods, parser: argparse.ArgumentParser) -> None:
    """Write the files and measure them; exit code 3 where one misses a limit.

    Args:
        methods: by which the network of `--compare_ptq` is quantized without training.
    """
    name, network = find_network(args.name)
    outputs, score = compares_outputs(args, network), score_against_labels(args, name, network)
    if not outputs:
        refuse_with_class_maps(args, parser, ("fp32_model", "egolanes_checkpoint"))
    elif args.sensitivity:
        parser.error(f"argument --sensitivity: takes masks of classes, {name} gives no map of them")
    references = PTQ_LABELS if args.compare_ptq else PTQ_LABELS[:1] if outputs else ()
    targets = targets_of(args, parser)
    camera = camera_of(args, name, network)
    if outputs and camera.output == "classes":
        parser.error("argument --output: classes are scored on masks (--dataset_root); outputs are compared")
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

    asked, usual = args.num_calibration_samples, QatSettings.num_calibration_samples
    count = min(usual if asked is None else asked, images.training)
    if asked == 0 or (asked is None and keeps_ranges(description.arguments)):
        logger.info("the ranges are those of the training")
    else:
        logger.info("calibrating on %d of %d training images", count, images.training)
        batch_size = observed_images(description.arguments) or CALIBRATION_BATCH
        calibrate(prepared, (batch.to(device) for batch in images.draw(count, batch_size)))
    sensitivity = None
    if args.sensitivity:
        samples, image_format = samples_with_masks(images), ImageFormat.of(network, description.input_hw)
        examples = examples_of(samples, args.sensitivity, image_format)
        retraining = partial(retraining_command, description.arguments)
        sensitivity = analyse(prepared, examples, classes_of(network, samples), device, retraining)
    int8 = convert(prepared.cpu())

    compared = images.inputs(PARITY_IMAGES)
    options = export_options(args, camera)
    candidates, notes = export_int8(int8, name, description, folder, compared, least_equal, options, targets)
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
