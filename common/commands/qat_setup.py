"""What the flags of benchmark_qat_model.py stand for: targets, limits, what to compare with, a folder, examples."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.benchmark.ptq import open_untrained
from common.benchmark.settings import GateSettings
from common.cli.benchmark import gate_settings
from common.cli.targets import require_writable
from common.data.datasets import evenly_spaced
from common.data.loading import Example, SampleDataset
from common.data.pairs import Sample
from common.data.transforms import ImageFormat
from common.export.options import FILE_EQUAL_PIXELS
from common.export.qat_export import targets_to_write
from common.networks.checkpoints import Description, read_checkpoint
from common.networks.opening import OpenedNetwork, open_network
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.system.lock import hold_folder

FOLDER = "onnx_models"  # beside the checkpoint


def targets_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """What files are written for; exit code 2 where flags ask for what these cannot be."""
    stored = read_checkpoint(args.qat_checkpoint_path, args.name, args.weights).description
    trained = (stored.quantization or {}).get("target") if stored else None
    targets = targets_to_write(trained if trained in TARGETS else DEFAULT_TARGET, args.target, args.pte)
    require_writable(args, targets[0], parser)
    return targets


def equal_pixels(args: argparse.Namespace, outputs: bool) -> tuple[float, GateSettings]:
    """On which share of pixels files have to agree with PyTorch INT8, and the gate, for which `--min_equal_pixels` is a
    limit against FP32 where `outputs` are compared."""
    given, gate = args.min_equal_pixels, gate_settings(args)
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


def examples_of(samples: Sequence[Sample], count: int, image_format: ImageFormat) -> list[Example]:
    """As many of the samples, evenly spaced, as networks take them."""
    dataset = SampleDataset(evenly_spaced(samples, count), image_format)
    return [dataset[index] for index in range(len(dataset))]
