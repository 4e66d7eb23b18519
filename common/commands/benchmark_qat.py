"""A QAT checkpoint to INT8 files that are measured: calibrate, convert, export, compare."""

import argparse
import logging
from functools import partial

import torch
from torch.fx import GraphModule

from common.benchmark.ptq import fp32_candidate, without_training
from common.benchmark.run import keep_to_processors
from common.benchmark.sensitivity import Sensitivity
from common.benchmark.sensitivity_analysis import analyse
from common.cli.benchmark import benchmark_settings
from common.commands.auto_float import choose_in_checkpoint
from common.commands.export import export_options
from common.commands.qat_images import Images, labelled_images, output_images, samples_with_masks
from common.commands.qat_setup import open_folder, open_reference, plan_of
from common.commands.reports import leave_by_gate
from common.data.classes import classes_of
from common.data.datasets import evenly_spaced
from common.data.loading import SampleDataset
from common.data.transforms import ImageFormat
from common.export.qat_export import export_int8
from common.networks.checkpoints import Description, require_choice
from common.quantization.checkpoints import load_qat
from common.quantization.methods import USUAL, PtqMethods
from common.quantization.pt2e import calibrate, convert, with_float_modules
from common.quantization.quantizer import modules_matching
from common.system.process import resolve_device, seed_everything
from common.training.settings import QatSettings, keeps_ranges, observed_images, retraining_command, start_of
from models import Network

logger = logging.getLogger(__name__)

CALIBRATION_BATCH = 8  # images, where a checkpoint does not say how many its observers saw at a time
PARITY_IMAGES = 8  # validation images on which each file is compared with PyTorch


def benchmark_trained(args: argparse.Namespace, methods: PtqMethods, parser: argparse.ArgumentParser) -> None:
    """Write the files and measure them; exit code 3 where one misses a limit.

    Args:
        methods: by which the network of `--compare_ptq` is quantized without training.
    """
    plan = plan_of(args, parser)
    name, network = plan.name, plan.network
    seed_everything(args.seed)
    keep_to_processors(benchmark_settings(args))
    device = resolve_device(args.device)
    prepared, description, checkpoint = load_qat(args.qat_checkpoint_path, name, device, args.weights)
    require_choice(checkpoint, args.weights)
    reference = open_reference(args, name, description, plan.outputs)
    if plan.outputs:
        images = output_images(args, network, description.input_hw, plan.score)
    else:
        images = labelled_images(args, network, description.input_hw)
    plan.gate.require_calls(len(images.validation), args.timed_runs)
    folder = open_folder(args.qat_checkpoint_path)

    find_ranges(prepared, args, description, images, device)
    if args.keep_float:
        prepared = with_float_modules(prepared, modules_matching(prepared, args.keep_float))
    sensitivity = layers_of(prepared, args.sensitivity, network, description, images, device)
    options, choice = export_options(args, plan.camera, plan.onnx_target), None
    if plan.limit:
        int8, choice = choose_in_checkpoint(
            args, parser, prepared, description, images, reference, options, plan.targets[0], plan.limit
        )
    else:
        int8 = convert(prepared.cpu())

    compared = images.inputs(PARITY_IMAGES)
    start = start_of(description.arguments)
    corrected = start.names if start else ()
    candidates, notes = export_int8(
        int8, name, description, folder, compared, plan.least_equal, options, plan.targets, corrected
    )
    print(*notes, sep="\n")
    if reference and args.compare_ptq:  # the first model is the reference of the comparison
        calibration = list(images.draw(calibration_count(args, images), 1))
        files = without_training(
            description, reference, folder, calibration, compared, options, plan.onnx_target, methods
        )
        candidates = files | candidates
    elif reference:
        candidates = fp32_candidate(reference, folder, options) | candidates
    document = images.run(folder, candidates, plan.gate, notes=notes, sensitivity=sensitivity, choice=choice)
    for candidate in candidates.values():
        print(f"wrote {candidate.path} ({candidate.size_bytes / 1e6:.2f} MB)")
    leave_by_gate(document)


def calibration_count(args: argparse.Namespace, images: Images) -> int:
    """How many of the training images calibrate."""
    asked = args.num_calibration_samples
    return min(QatSettings.num_calibration_samples if asked is None else asked, images.training)


def find_ranges(
    prepared: GraphModule, args: argparse.Namespace, trained: Description, images: Images, device: torch.device
) -> None:
    """Calibrate the trained graph, in place, unless it is to keep the ranges of its training."""
    asked = args.num_calibration_samples
    if asked == 0 or (asked is None and keeps_ranges(trained.arguments)):
        logger.info("the ranges are those of the training")
        return
    count, batch_size = calibration_count(args, images), observed_images(trained.arguments) or CALIBRATION_BATCH
    logger.info("calibrating on %d of %d training images", count, images.training)
    ranges = (start_of(trained.arguments) or USUAL).ranges
    calibrate(prepared, (batch.to(device) for batch in images.draw(count, batch_size)), ranges)


def layers_of(
    prepared: GraphModule,
    count: int | None,
    network: Network,
    trained: Description,
    images: Images,
    device: torch.device,
) -> Sensitivity | None:
    """What quantization costs in every layer, on `count` validation images with masks; None where none is asked for."""
    if count is None:
        return None
    samples = samples_with_masks(images)
    dataset = SampleDataset(evenly_spaced(samples, count), ImageFormat.of(network, trained.input_hw))
    examples = [dataset[index] for index in range(len(dataset))]
    retraining = partial(retraining_command, trained.arguments)
    return analyse(prepared, examples, classes_of(network, samples), device, retraining)
