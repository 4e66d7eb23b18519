"""What the flags of benchmark_qat_model.py stand for: targets, limits, what to compare with, a folder, examples."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.benchmark.auto_float import Subject, choose_float, require_kept
from common.benchmark.float_choice import MIN_SQNR, FloatChoice, FloatLimit
from common.benchmark.float_images import division
from common.benchmark.float_search import Material
from common.benchmark.image_counts import outputs_with
from common.benchmark.ptq import open_untrained
from common.benchmark.settings import GateSettings
from common.cli.auto_float import request_of
from common.cli.benchmark import gate_settings
from common.cli.qat_images import Images
from common.cli.targets import require_writable
from common.data.classes import classes_of
from common.data.datasets import evenly_spaced
from common.data.loading import Example, SampleDataset
from common.data.pairs import Sample
from common.data.transforms import ImageFormat
from common.export.options import ExportOptions
from common.export.qat_export import targets_to_write
from common.export.writing import write_candidate
from common.networks.checkpoints import Description, read_checkpoint
from common.networks.opening import OpenedNetwork, open_network
from common.networks.registry import find_network
from common.quantization.pt2e import convert, float_form, with_float_modules
from common.quantization.simulation import fake_quantizations
from common.report.float_choice import float_tables
from common.runtimes.predictors import TorchPredictor
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.system.lock import hold_folder

FOLDER = "onnx_models"  # beside the checkpoint
FILE_EQUAL_PIXELS = 0.995  # two right INT8 kernels may round a value in other directions


def targets_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """What files are written for; exit code 2 where flags ask for what these cannot be."""
    stored = read_checkpoint(args.qat_checkpoint_path, args.name, args.weights).description
    trained = (stored.quantization or {}).get("target") if stored else None
    targets = targets_to_write(trained if trained in TARGETS else DEFAULT_TARGET, args.target, args.pte)
    require_writable(args, targets[0], parser)
    return targets


def equal_pixels(args: argparse.Namespace, outputs: bool) -> tuple[float, GateSettings]:
    """On which share of pixels files have to agree with PyTorch INT8, and the gate, for which `--min_equal_pixels` is a
    limit against FP32 where `outputs` are compared. The limit of a choice is none of the gate."""
    given, gate = args.min_equal_pixels, gate_settings(args)
    if args.auto_float:
        gate = replace(gate, limits=replace(gate.limits, max_miou_drop=None, min_sqnr_db=None))
    if outputs:
        return min(FILE_EQUAL_PIXELS, FILE_EQUAL_PIXELS if given is None else given), gate
    return FILE_EQUAL_PIXELS if given is None else given, replace(
        gate, limits=replace(gate.limits, min_equal_pixels=None)
    )


def open_reference(args: argparse.Namespace, name: str, trained: Description, outputs: bool) -> OpenedNetwork | None:
    """The FP32 network to compare with, if any; one that cannot be had fails here, before the work."""
    if args.compare_ptq:
        return open_untrained(name, trained, args.compare_ptq, args.weights, args.num_calibration_samples)
    if not outputs:
        return None
    path = args.fp32_model or Path(str(trained.arguments.get("fp32_model") or ""))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the FP32 weights of the training are not there, with whose outputs INT8 is compared: give "
            "--fp32_model CKPT"
        )
    weights = args.weights or trained.arguments.get("weights")
    return open_network(name, path, trained.input_hw, weights)


def open_folder(checkpoint: Path) -> Path:
    """The folder of the results beside a checkpoint, which no other run writes to."""
    folder = checkpoint.parent / FOLDER
    folder.mkdir(exist_ok=True)
    hold_folder(folder, "wait for its end")
    return folder


def choose_in_checkpoint(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    prepared: GraphModule,
    description: Description,
    images: Images,
    untrained: OpenedNetwork | None,
    options: ExportOptions,
    target: str,
    limit: FloatLimit,
) -> tuple[GraphModule, FloatChoice]:
    """The INT8 network of a calibrated graph with the chosen blocks in float.

    It is compared with the outputs of `untrained` where these are compared, and with itself in float where there are
    masks of classes.

    Raises:
        ValueError: the limit is not kept; the tables are printed then.
    """
    name, network = find_network(args.name)
    device = next(prepared.parameters()).device
    choosing, checking = (images.read(half) for half in (images.choosing, images.validation))
    reference, classes = outputs_with(prepared, fake_quantizations(prepared), device), None
    if limit.name == MIN_SQNR:
        assert untrained is not None
        reference = TorchPredictor(untrained.model, torch.device("cpu")).outputs
    else:
        classes = classes_of(network, images.validation)
    shape = (network.channels, *description.input_hw)
    subject = Subject(
        float_form(prepared).cpu(),
        lambda modules: convert(with_float_modules(prepared, modules).cpu()),
        None,
        partial(write_candidate, name, network, description.width, shape, options, target),
        TARGETS[target],
    )
    request = request_of(args, limit, division(choosing, checking), parser)
    choice, int8 = choose_float(subject, Material(prepared, reference, choosing, classes, device), checking, request)
    if int8 is None:
        print(float_tables(asdict(choice)))
    require_kept(choice)
    assert int8 is not None
    return int8, choice


def examples_of(samples: Sequence[Sample], count: int, image_format: ImageFormat) -> list[Example]:
    """As many of the samples, evenly spaced, as networks take them."""
    dataset = SampleDataset(evenly_spaced(samples, count), image_format)
    return [dataset[index] for index in range(len(dataset))]
