"""What benchmark_qat_model.py is asked for, and what it opens before the work: FP32 weights, a folder."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from common.benchmark.float_choice import FloatLimit
from common.benchmark.gate import Gate, open_gate
from common.benchmark.ptq import LABELS as PTQ_LABELS
from common.benchmark.ptq import open_untrained
from common.benchmark.settings import GateSettings
from common.cli.auto_float import float_limit
from common.cli.benchmark import gate_settings
from common.cli.flags import refuse_with_class_maps
from common.cli.targets import require_writable
from common.commands.auto_float import require_maps
from common.commands.export import camera_of
from common.commands.inputs import compares_outputs, score_against_labels
from common.data.camera import CameraFormat
from common.export.options import FILE_EQUAL_PIXELS
from common.export.qat_export import labels_of, targets_to_write
from common.networks.checkpoints import Description, read_checkpoint
from common.networks.opening import OpenedNetwork, open_network
from common.networks.registry import find_network
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.scoring.figures import Score
from common.system.lock import hold_folder
from models import Network

FOLDER = "onnx_models"  # beside the checkpoint


@dataclass(frozen=True)
class Plan:
    """What is asked for, as far as it is known before the network is opened."""

    name: str  # of the network, as registered
    network: Network
    outputs: bool  # whether outputs are compared, in the place of maps of classes
    score: Score | None  # by which outputs are judged against labels
    targets: tuple[str, ...]  # that files are written for, the first of them the network's own
    camera: CameraFormat  # the form of the files
    least_equal: float  # share of pixels on which files have to agree with PyTorch INT8, 0 to 1
    gate: Gate
    limit: FloatLimit | None  # by which it is chosen what stays in float

    @property
    def onnx_target(self) -> str:
        """That of an ONNX file which is compared with the trained one."""
        return self.targets[0] if TARGETS[self.targets[0]].opsets else DEFAULT_TARGET


def plan_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Plan:
    """What the flags ask for; exit code 2 where they do not go together, or not with the network.

    Raises:
        FileNotFoundError, ValueError: a checkpoint that cannot be read, or what it cannot be made into; a gate that
            cannot be held.
    """
    name, network = find_network(args.name)
    outputs, score = compares_outputs(args, network), score_against_labels(args, name, network)
    if not outputs:
        refuse_with_class_maps(args, parser, ("fp32_model", "egolanes_checkpoint"))
    elif args.sensitivity:
        parser.error(f"argument --sensitivity: takes masks of classes, {name} gives no map of them")
    targets, camera = targets_of(args, parser), camera_of(args, name, network)
    if outputs and camera.output == "classes":
        parser.error("argument --output: classes are scored on masks (--dataset_root); outputs are compared")
    references = PTQ_LABELS if args.compare_ptq else PTQ_LABELS[:1] if outputs else ()
    limit = float_limit(args, targets[0], parser)
    require_maps(limit, network, parser)
    least_equal, limits = equal_pixels(args, outputs)
    gate = open_gate(limits, [*references, *labels_of(targets)], outputs=outputs, score=score)
    return Plan(name, network, outputs, score, targets, camera, least_equal, gate, limit)


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
